"""Samples of few-shot training: rows of any sense with their classes, how they are drawn, and half-batches of two.

Lin et al., https://arxiv.org/abs/2301.06267, and the authors' code, linzhiqiu/cross_modal_adaptation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmprefix.errors import InputError

VALIDATED = 4  # validation has as many rows a class as training, and no more than this


@dataclass(frozen=True)
class Shots:
    """Rows (N W) and the class of each (N,), from 0 on. The rows may be of any sense, and of any length."""

    rows: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Shots:
        """The rows at ``indices``."""
        return Shots(self.rows[indices], self.labels[indices])


@dataclass(frozen=True)
class Run:
    """One training: shots of the task's ``own`` sense, those to choose by, of the ``other`` senses, and its start.

    ``start`` (C W) are the weights before training (``random_start``, ``zero_shot_start``); ``seed`` orders batches.
    """

    own: Shots
    val: Shots
    start: Tensor
    other: Shots | None = None
    seed: int = 0


def joined(*several: Shots) -> Shots:
    """Shots of several senses as one set: "sound + text" as the other half of batches of pictures."""
    return Shots(torch.cat([shots.rows for shots in several]), torch.cat([shots.labels for shots in several]))


def draw_shots(shots: Shots, count: int, seed: int) -> Shots:
    """``count`` rows of each class, drawn anew for each ``seed``. InputError for a class that has fewer."""
    generator = torch.Generator().manual_seed(seed)
    chosen = list[Tensor]()
    for label in shots.labels.unique():
        places = torch.nonzero(shots.labels == label).flatten()
        if len(places) < count:
            raise InputError(f"count {count}: class {int(label)} has {len(places)} rows; give at most so many shots")
        chosen.append(places[torch.randperm(len(places), generator=generator)[:count]])
    return shots.take(torch.cat(chosen))


def halves(batch_size: int, run: Run) -> tuple[int, int]:
    """Rows of the own and of the other senses in a batch: all own where there is no other, else half and half."""
    other = 0 if run.other is None else int(0.5 * batch_size)
    return batch_size - other, other


def fits(batch_size: int, run: Run) -> bool:
    """True where each part of a batch is smaller than the set that it is drawn from; others are skipped.

    A trap of the published recipe: with 10 classes and 1 shot, a batch of 32 is no setting.
    """
    own, other = halves(batch_size, run)
    return 0 < own < len(run.own) and (run.other is None or 0 < other < len(run.other))


def batch_indices(count: int, size: int, steps: int, generator: torch.Generator) -> Tensor:
    """Rows (``steps``, ``size``) of ``count``: shuffled anew in each epoch, which leaves out what fills no batch."""
    full = count // size
    epochs = -(-steps // full)
    order = torch.rand(epochs, count, generator=generator).argsort(1)[:, : full * size]
    return order.reshape(-1, size)[:steps]
