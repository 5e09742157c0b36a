"""Heads of few-shot classification, several trained side by side: linear, adapter, partial; and WiSE-FT.

Lin et al., https://arxiv.org/abs/2301.06267, and the authors' code, linzhiqiu/cross_modal_adaptation. Adapter: CLIP-
Adapter, https://arxiv.org/abs/2110.04544. WiSE-FT: Robust fine-tuning of zero-shot models,
https://arxiv.org/abs/2109.01903. R heads are independent: their tensors only stand in one, so that one step trains all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from mmprefix.errors import InputError
from mmprefix.training.few_shots.samples import Shots

SCALE, PARTIAL_SCALE = 4.60517, 4.0  # logarithms of the fixed scale of the cosines
RATIO = 0.2  # share of what the adapter adds


class Heads(nn.Module):
    """R heads without bias: logits = W f / |f| times a fixed scale.

    Args:
        start: weights before training (R C W).
        log_scale: logarithm of the scale.
    """

    def __init__(self, start: Tensor, log_scale: float = SCALE) -> None:
        super().__init__()
        self.weight, self.log_scale = nn.Parameter(start.clone()), log_scale

    def read_own(self, rows: Tensor) -> Tensor:
        """Rows of the task's own sense (R B G) → the space of the head (R B W); here they are in it."""
        return rows

    def adapt(self, rows: Tensor) -> Tensor:
        """Rows of all senses (R B W) → what the weights read."""
        return rows

    def forward(self, own: Tensor, other: Tensor | None = None) -> Tensor:
        """Own rows (R B G), and those of other senses (R B' W) behind them → logits (R B+B' C)."""
        rows = self.read_own(own)
        rows = rows if other is None else torch.cat([rows, other], dim=1)
        features = normalize(self.adapt(rows), dim=2)
        return math.exp(self.log_scale) * features @ self.weight.mT

    def keep(self, better: Tensor, other: Self) -> None:
        """Copy the heads that are ``better`` (R, True) from ``other``."""
        with torch.no_grad():
            for own, new in zip(self.parameters(), other.parameters(), strict=True):
                own[better] = new[better]

    @torch.no_grad()
    def accuracy(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Share of own rows (R B G) that each head gives their class (R B) → (R,)."""
        return (self(rows).argmax(2) == labels).float().mean(1)


class LinearHeads(Heads):
    """Weights alone are trained, at scale e^4.60517."""


class AdapterHeads(Heads):
    """Two layers before the weights: .2 relu(U relu(D f)) + .8 f for a row f of length 1, D (W/4 W), U (W W/4).

    D and U begin as torch's linear layers do. Both senses pass through it, and the sum is scaled to length 1 again.
    """

    def __init__(self, start: Tensor, log_scale: float = SCALE) -> None:
        super().__init__(start, log_scale)
        runs, _, width = start.shape
        if width < 4:
            raise InputError(f"AdapterHeads: rows of {width} numbers have no quarter; give rows of 4 or more")
        self.down = nn.Parameter(_uniform(runs, width // 4, width))
        self.up = nn.Parameter(_uniform(runs, width, width // 4))

    def adapt(self, rows: Tensor) -> Tensor:
        """Rows (R B W) → (R B W)."""
        rows = normalize(rows, dim=2)
        added = relu(relu(rows @ self.down.mT) @ self.up.mT)
        return RATIO * added + (1 - RATIO) * rows


class PartialHeads(Heads):
    """The last layer of the own sense's encoder is trained too, at scale e^4; other senses are read as they are.

    Args:
        start: weights before training (R C W).
        layer: the layer as it was, a linear one (W G), without bias: own rows (B G) are its inputs.
        log_scale: logarithm of the scale.
    """

    def __init__(self, start: Tensor, layer: Tensor, log_scale: float = PARTIAL_SCALE) -> None:
        super().__init__(start, log_scale)
        self.layer = nn.Parameter(layer.expand(len(start), -1, -1).clone())

    def read_own(self, rows: Tensor) -> Tensor:
        """Inputs of the layer (R B G) → (R B W)."""
        return rows @ self.layer.mT


def random_start(classes: int, width: int, seed: int) -> Tensor:
    """Weights (C W) as torch begins a linear layer.

    It is the start of a training on the own sense alone. A trap: until February 2025 the public code began that
    baseline with the zero-shot weights, which hold the text already, so that text seemed to add little.
    """
    return _uniform(1, classes, width, torch.Generator().manual_seed(seed))[0]


def zero_shot_start(shots: Shots, classes: int, *, unit_rows: bool = False) -> Tensor:
    """Weights (C W): the mean of a class's rows, scaled to length 1.

    A trap: rows are averaged as the encoder gave them, so that longer ones count more; ``unit_rows`` scales each first,
    as the audio-visual benchmark's program does. InputError for a class without a row.
    """
    rows = normalize(shots.rows, dim=1) if unit_rows else shots.rows
    counts = torch.bincount(shots.labels, minlength=classes)
    if not bool(counts.all()):
        raise InputError(f"classes {classes}: class {int((counts == 0).nonzero()[0])} has no row to start from")
    sums = rows.new_zeros(classes, rows.shape[1]).index_add_(0, shots.labels, rows)
    return normalize(sums / counts[:, None], dim=1)


def wise_ft(heads: Heads, zero_shot: Tensor, share: float = 0.5) -> Heads:
    """Copy of trained ``heads`` with weights between theirs and the ``zero_shot`` ones (C W), after training."""
    mixed = deepcopy(heads)
    with torch.no_grad():
        mixed.weight.lerp_(normalize(zero_shot, dim=1).expand_as(mixed.weight), share)
    return mixed


def stacked(starts: Sequence[Tensor]) -> Tensor:
    """Starts of several runs (C W) → (R C W)."""
    return torch.stack(list(starts))


def _uniform(runs: int, out: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Numbers (R ``out`` ``width``) as torch begins the weights of a linear layer: within 1/√width."""
    bound = 1 / math.sqrt(width)
    return cast(Tensor, torch.empty(runs, out, width).uniform_(-bound, bound, generator=generator))
