"""Which rows make up which batch: a pure function of seed and epoch, the same on every machine and after every restart.

Rows of like length share a batch (less padding), rows with different inputs never do, and in a run of several
processes each row goes to exactly one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import Sampler

POOL = 50  # batches within which rows are sorted by length: long enough to sort well, short enough to stay random


class BatchRows(NamedTuple):
    """The rows of one batch, and the epoch that draws them."""

    epoch: int
    rows: list[int]


class RowKey(NamedTuple):
    """What the order needs to know of a row: which inputs it has, and a key by which rows of like length are near."""

    inputs: frozenset[str]
    length: tuple[float, ...]


class BucketSampler(Sampler[BatchRows]):
    """The batches of training, epoch after epoch.

    A step of the whole run takes ``batch_size * world`` rows, all with the same inputs, and deals them out to the
    ``world`` processes, of which this is number ``rank``; all have the same number of batches. With ``bucket`` rows are
    shuffled, sorted by length within pools of 50 steps, cut into steps, and the steps shuffled. Every row comes once
    an epoch; only a last step with fewer rows than processes is left out, and any smaller one with ``drop_last``.

    With ``max_tokens`` rows are sorted over the whole epoch, those of equal length shuffled, and a step ends where one
    row more would make a process run more tokens of text than that, padding included: rows times the longest one's.

    ``skip`` batches of the epoch set by ``set_epoch`` are already done; ``len()`` counts them all the same.
    """

    def __init__(
        self,
        rows: Sequence[RowKey],
        batch_size: int,
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
        self.epoch = self.skip = 0
        self._steps = len(self._steps_of([self._order(group, np.random.default_rng(0)) for group in self.groups]))

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[BatchRows]:
        return iter(self.batches(self.epoch)[self.skip :])

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The epoch that the next iteration draws, and how many of its batches to leave out at the start."""
        self.epoch, self.skip = epoch, skip

    def batches(self, epoch: int) -> list[BatchRows]:
        """The batches of this process in ``epoch``."""
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
        tokens, start, longest = self.lengths[order, -1], 0, 0.0
        for end, longer in enumerate(np.maximum(tokens, 1)):
            longest = max(longest, longer)
            rows = -(-(end + 1 - start) // self.world)  # of the process that has most
            if end - start >= self.world and (rows * longest > (self.max_tokens or 0) or end - start >= most):
                yield order[start:end]
                start, longest = end, longer
        yield order[start:]


class EvalSampler(Sampler[BatchRows]):
    """The batches of one evaluation: every row exactly once, in an order that never changes.

    With ``bucket`` rows of like length share a batch, and batches come in the order of their first rows. Processes take
    batches in turn. Batches are halved until all processes have equally many, because a process that is done early
    would leave the others waiting in the next exchange; only with fewer rows than that needs do the numbers differ.
    With fewer rows than processes some repeat the first batch, so that none stays away when results are exchanged.
    """

    def __init__(
        self, rows: Sequence[RowKey], batch_size: int, bucket: bool = False, rank: int = 0, world: int = 1
    ) -> None:
        lengths = [row.length for row in rows]
        batches: list[list[int]] = []
        for group in _groups(rows).values():
            order = sorted(group.tolist(), key=lambda row: lengths[row]) if bucket else group.tolist()
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


class Epochs(Protocol):
    """Batches, epoch after epoch, that can be begun anywhere."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def set_epoch(self, epoch: int, skip: int = 0) -> None: ...


class ResumingSampler(Sampler[BatchRows]):
    """``sampler``, at each start of an epoch set to the place where the run really is.

    ``done`` tells how many batches this run has been trained on, over all epochs and restarts; ``origin`` is the epoch,
    batch and ``done`` from which is counted. ``limit`` is the number of batches that a run takes of each epoch.
    Counting what was trained, not epochs begun, makes the order independent of where in its own loop a trainer starts
    again: a checkpoint from an epoch's end can lead Lightning to number the next epoch one too high.
    """

    def __init__(
        self, sampler: Epochs, done: Callable[[], int], limit: int, origin: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        self.sampler, self.done, self.limit, self.origin = sampler, done, limit, origin

    def __len__(self) -> int:
        return len(self.sampler)

    def position(self) -> tuple[int, int]:
        """The epoch that the run is in, and how many of its batches are done."""
        epoch, batch, done = self.origin
        since = max(0, self.done() - done)  # a trainer may ask before it has restored its own count
        more, batch = divmod(batch + since, self.limit)
        return epoch + more, batch

    def __iter__(self) -> Iterator[BatchRows]:
        self.sampler.set_epoch(*self.position())
        return iter(self.sampler)


def _groups(rows: Sequence[RowKey]) -> dict[frozenset[str], np.ndarray]:
    """The numbers of the rows by the inputs that they have, in order of appearance."""
    groups: dict[frozenset[str], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.inputs, []).append(number)
    return {inputs: np.array(numbers) for inputs, numbers in groups.items()}
