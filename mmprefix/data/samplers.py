"""Rows of each batch: a pure function of seed and epoch, the same on every machine and after every restart.

Rows of like length share a batch (less padding), rows with different inputs never do, and in a run of several
processes each row goes to exactly one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from lightning.pytorch import Trainer
from torch.utils.data import Sampler

from mmprefix.errors import InputError

POOL = 50  # batches within which rows are sorted by length: long enough to sort well, short enough to stay random


class BatchRows(NamedTuple):
    """Row numbers of one batch, and the epoch that it belongs to."""

    epoch: int
    rows: list[int]


class RowKey(NamedTuple):
    """Sort key of a row: rows with the same ``inputs`` may share a batch, rows of like ``length`` should.

    ``seconds`` of the longest sound (0: none), the number of ``captions`` an epoch, and their ``tokens`` with the
    context's, or letters where the decoder's tokens were not counted.
    """

    inputs: frozenset[str]
    seconds: float
    captions: int
    tokens: int

    @property
    def length(self) -> tuple[float, int, int]:
        """(seconds, captions, tokens): the most important first."""
        return self.seconds, self.captions, self.tokens


class BucketSampler(Sampler[BatchRows]):
    """Batches of training, epoch after epoch.

    A step of the whole run takes ``batch_size * world`` rows, all with the same inputs, and deals them out to the
    processes; all processes have the same number of batches. Every row comes once an epoch; only a last step with fewer
    rows than processes is left out.

    ``skip`` batches of the epoch set by ``set_epoch`` are already done; ``len()`` counts them all the same.

    Args:
        rows: the key of each row.
        batch_size: rows a batch and process.
        seed: of the order.
        bucket: shuffle rows, sort them by length within pools of 50 steps, cut them into steps, and shuffle the steps;
            otherwise shuffle only.
        drop_last: leave out steps that are not full.
        rank: number of this process.
        world: number of processes.
        max_tokens: sort rows over the whole epoch, those of equal length shuffled, and end a step where one row more
            would give a process more tokens of text than this, padding included (rows times the longest row's).
    """

    def __init__(
        self,
        rows: Sequence[RowKey],
        batch_size: int,
        *,
        seed: int = 0,
        bucket: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        max_tokens: int | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self.batch_size, self.seed, self.bucket, self.drop_last = batch_size, seed, bucket, drop_last
        self.rank, self.world = rank, world
        self.groups = list(_groups(rows).values())
        self.lengths = np.array([row.length for row in rows], dtype=np.float64).reshape(len(rows), -1)
        self.tokens = np.array([row.tokens for row in rows], dtype=np.float64)
        self.epoch = self.skip = 0
        self._steps = len(self._steps_of([self._order(group, np.random.default_rng(0)) for group in self.groups]))

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[BatchRows]:
        return iter(self.batches(self.epoch)[self.skip :])

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Set the epoch of the next iteration, and the number of its batches to leave out at the start."""
        self.epoch, self.skip = epoch, skip

    def batches(self, epoch: int) -> list[BatchRows]:
        """Batches of this process in ``epoch``."""
        random = np.random.default_rng([self.seed, epoch])
        steps = self._steps_of([self._order(group, random) for group in self.groups])
        return [
            BatchRows(epoch, steps[number][self.rank :: self.world].tolist())
            for number in random.permutation(len(steps))
        ]

    def _order(self, group: np.ndarray, random: np.random.Generator) -> np.ndarray:
        order = random.permutation(group)
        if self.max_tokens:
            return self._sorted(order)
        if not self.bucket:
            return order
        size = POOL * self.batch_size * self.world
        return np.concatenate([self._sorted(order[start : start + size]) for start in range(0, len(order), size)])

    def _sorted(self, pool: np.ndarray) -> np.ndarray:
        return pool[np.lexsort(self.lengths[pool].T[::-1])]  # lexsort wants the most important key last

    def _steps_of(self, orders: list[np.ndarray]) -> list[np.ndarray]:
        size = self.batch_size * self.world
        least = size if self.drop_last else self.world
        if self.max_tokens:
            steps = [step for order in orders for step in self._by_tokens(order, size)]
        else:
            steps = [order[start : start + size] for order in orders for start in range(0, len(order), size)]
        return [step for step in steps if len(step) >= least]

    def _by_tokens(self, order: np.ndarray, most: int) -> Iterator[np.ndarray]:
        """Steps of at most ``most`` rows, by the tokens that the longest of them has."""
        tokens, start, longest = self.tokens[order], 0, 0.0
        for end, longer in enumerate(np.maximum(tokens, 1)):
            longest = max(longest, longer)
            rows = -(-(end + 1 - start) // self.world)  # of the process that has most
            if end - start >= self.world and (rows * longest > (self.max_tokens or 0) or end - start >= most):
                yield order[start:end]
                start, longest = end, longer
        yield order[start:]


class EvalSampler(Sampler[BatchRows]):
    """Batches of one evaluation: every row exactly once, in an order that never changes.

    With ``bucket`` rows of like length share a batch, and batches come in the order of their first rows. Processes take
    batches in turn. Batches are halved until all processes have equally many, because a process that is done early
    would leave the others waiting in the next exchange; only with fewer rows than that needs do the numbers differ.
    With fewer rows than processes some repeat the first batch, so that none stays away when results are exchanged.
    The rows whose numbers are ``done`` are left out. With ``shuffle`` rows are dealt out in an order that is random but
    the same each time: a loss with the prefix of a batch's other input says nothing where a manifest is sorted, by
    class or by user, and that input is one of the same class.
    """

    def __init__(
        self,
        rows: Sequence[RowKey],
        batch_size: int,
        *,
        bucket: bool = False,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        done: Collection[int] = (),
    ) -> None:
        lengths = [row.length for row in rows]
        batches: list[list[int]] = []
        for group in _groups(rows).values():
            dealt = np.random.default_rng(0).permutation(group) if shuffle else group
            left = [row for row in dealt.tolist() if row not in done]
            order = sorted(left, key=lambda row: lengths[row]) if bucket else left
            batches += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        while len(batches) % world and max(map(len, batches)) > 1:
            largest = batches.pop(max(range(len(batches)), key=lambda number: len(batches[number])))
            batches += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
        batches.sort(key=min)
        self.mine = batches[rank::world] or batches[:1]

    def __len__(self) -> int:
        return len(self.mine)

    def __iter__(self) -> Iterator[BatchRows]:
        return iter([BatchRows(0, rows) for rows in self.mine])


def rank_and_world(trainer: Trainer | None) -> tuple[int, int]:
    """Number of this process, and number of processes.

    Raises InputError where Lightning would deal out the rows once more.
    """
    if trainer is None or trainer.world_size == 1:
        return 0, 1
    if trainer._accelerator_connector.use_distributed_sampler:
        raise InputError(
            "trainer.use_distributed_sampler true in several processes: give false; PairData deals out the rows"
        )
    return trainer.global_rank, trainer.world_size


def _groups(rows: Sequence[RowKey]) -> dict[frozenset[str], np.ndarray]:
    """Row numbers by the inputs that the rows have, in order of appearance."""
    groups: dict[frozenset[str], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.inputs, []).append(number)
    return {inputs: np.array(numbers) for inputs, numbers in groups.items()}
