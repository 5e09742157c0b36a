"""Training of few-shot heads as published, all settings of a grid and all draws side by side.

Lin et al., https://arxiv.org/abs/2301.06267, and the authors' code, linzhiqiu/cross_modal_adaptation: half-batches,
AdamW with warm-up and cosine, validation every 100 iterations from iteration 0 on, the best state by it, one best
setting of a grid a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmprefix.errors import InputError
from mmprefix.training.few_shots.adam import SideBySideAdamW, rate_at
from mmprefix.training.few_shots.heads import Heads
from mmprefix.training.few_shots.samples import Run, batch_indices, fits, halves

ITERATIONS, EVERY = 12_800, 100


class Setting(NamedTuple):
    """Rate, weight decay and batch size of a training."""

    lr: float
    weight_decay: float
    batch_size: int


@dataclass(frozen=True)
class Grid:
    """Rates, weight decays and batch sizes to try."""

    rates: tuple[float, ...]
    decays: tuple[float, ...]
    batch_sizes: tuple[int, ...]


LINEAR = Grid((1e-3, 1e-4), (0.0, 0.01, 1e-4), (8, 32))
PARTIAL = Grid((1e-5, 1e-6, 1e-7), (0.0, 1e-3, 1e-5), (8,))
ADAPTER = Grid((1e-4, 1e-5, 1e-6, 1e-7), (0.0, 1e-3, 1e-5), (8,))
IMAGENET_ESC = Grid((0.1, 0.01, 1e-3, 1e-4), (0.0, 0.01, 1e-4), (8,))


@dataclass(frozen=True)
class Fitted:
    """One head (R = 1) in its best state: accuracy on the run's validation rows, when that was, and by which setting.

    ``curve`` is the validation accuracy every 100 iterations, from iteration 0 to the last.
    """

    heads: Heads
    val: float
    iteration: int
    setting: Setting
    curve: list[float]


MakeHeads = Callable[[Tensor], Heads]
"""Starts (R C W) → R heads."""


def fit_best(
    make: MakeHeads, runs: Sequence[Run], grid: Grid, *, iterations: int = ITERATIONS, every: int = EVERY
) -> list[Fitted]:
    """The best head of each of ``runs``: all settings of ``grid`` are trained, the first best on validation is taken.

    ``runs`` have as many rows as each other. Batch sizes that do not fit the shots are skipped; InputError where none
    does.
    """
    sizes = [size for size in grid.batch_sizes if all(fits(size, run) for run in runs)]
    if not sizes:
        smallest = min(len(run.own) for run in runs)
        raise InputError(f"batch_sizes {grid.batch_sizes}: none is smaller than the {smallest} training rows")
    settings = [Setting(lr, wd, size) for size in sizes for lr in grid.rates for wd in grid.decays]
    tried = [row for size in sizes for row in fit(make, runs, [s for s in settings if s.batch_size == size],
                                                  iterations=iterations, every=every)]  # fmt: skip
    return [max((row[number] for row in tried), key=lambda fitted: fitted.val) for number in range(len(runs))]


def fit(
    make: MakeHeads,
    runs: Sequence[Run],
    settings: Sequence[Setting],
    *,
    iterations: int = ITERATIONS,
    every: int = EVERY,
) -> list[list[Fitted]]:
    """Train each of ``runs`` with each of ``settings``, which have one batch size; a row of ``runs`` for each setting.

    A loop of its own: a step takes some hundred microseconds for all runs together, and a Trainer's work around it
    would take several times that.
    """
    size = settings[0].batch_size
    torch.manual_seed(runs[0].seed)  # of the adapters' start
    heads = make(torch.stack([run.start for run in runs]).repeat(len(settings), 1, 1))
    batches = _Batches(runs, size, iterations, len(settings))
    rates = torch.tensor([setting.lr for setting in settings]).repeat_interleave(len(runs))
    decays = torch.tensor([setting.weight_decay for setting in settings]).repeat_interleave(len(runs))
    optimizer = SideBySideAdamW(heads.parameters(), decays)
    best = _Best(heads, batches)
    for step in range(iterations):
        if step % every == 0:  # before the step: iteration 0 is the start
            best.look(heads, step)
        own, other, labels = batches.at(step)
        loss = cross_entropy(heads(own, other).flatten(0, 1), labels.flatten(), reduction="sum") / size
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step(rate_at(step, rates, iterations))
    best.look(heads, iterations)
    return [[best.fitted(first * len(runs) + run, setting) for run in range(len(runs))]
            for first, setting in enumerate(settings)]  # fmt: skip


class _Batches:
    """Batches of all runs at each step, own rows before those of other senses, for every setting alike."""

    def __init__(self, runs: Sequence[Run], size: int, steps: int, settings: int) -> None:
        own, other = halves(size, runs[0])
        self.settings, self.runs = settings, torch.arange(len(runs))[:, None]
        generators = [torch.Generator().manual_seed(run.seed) for run in runs]
        self.own = torch.stack([run.own.rows for run in runs])
        self.own_labels = torch.stack([run.own.labels for run in runs])
        self.val = torch.stack([run.val.rows for run in runs]).repeat(settings, 1, 1)
        self.val_labels = torch.stack([run.val.labels for run in runs]).repeat(settings, 1)
        orders = [batch_indices(len(run.own), own, steps, g) for run, g in zip(runs, generators, strict=True)]
        self.order = torch.stack(orders)
        others = [run.other for run in runs if run.other is not None]
        self.other = torch.stack([shots.rows for shots in others]) if others else None
        if others:
            self.other_labels = torch.stack([shots.labels for shots in others])
            orders = [batch_indices(len(s), other, steps, g) for s, g in zip(others, generators, strict=True)]
            self.other_order = torch.stack(orders)

    def at(self, step: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Own rows (R B G), other rows (R B' W) or None, and the classes of both (R B+B')."""
        places = self.order[:, step]
        own, labels = self.own[self.runs, places], self.own_labels[self.runs, places]
        if self.other is None:
            return own.repeat(self.settings, 1, 1), None, labels.repeat(self.settings, 1)
        places = self.other_order[:, step]
        labels = torch.cat([labels, self.other_labels[self.runs, places]], dim=1)
        other = self.other[self.runs, places].repeat(self.settings, 1, 1)
        return own.repeat(self.settings, 1, 1), other, labels.repeat(self.settings, 1)


class _Best:
    """The best state of each head so far, by validation; of equal ones the first."""

    def __init__(self, heads: Heads, batches: _Batches) -> None:
        self.heads, self.rows, self.labels = deepcopy(heads), batches.val, batches.val_labels
        self.val = torch.full((len(heads.weight),), -1.0)
        self.step = torch.zeros(len(heads.weight), dtype=torch.long)
        self.curve = list[Tensor]()

    def look(self, heads: Heads, step: int) -> None:
        """Validate ``heads`` at ``step``, and keep those that are better than before."""
        val = heads.accuracy(self.rows, self.labels)
        better = val > self.val
        self.heads.keep(better, heads)
        self.val, self.step = torch.where(better, val, self.val), self.step.masked_fill(better, step)
        self.curve.append(val)

    def fitted(self, place: int, setting: Setting) -> Fitted:
        """Head at ``place`` among all."""
        single = deepcopy(self.heads)
        for name, parameter in self.heads.named_parameters():
            setattr(single, name, nn.Parameter(parameter.detach()[place : place + 1].clone()))
        curve = [float(val[place]) for val in self.curve]
        return Fitted(single, float(self.val[place]), int(self.step[place]), setting, curve)
