"""Contract of every encoder: a frozen network with its own preprocessing and an identity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mmprefix.media.source import Source
from mmprefix.parts import Part
from mmprefix.types import Features, Media
from mmprefix.weights.source import Provenance

Preprocess = Callable[[Source, float, float | None], Tensor]
"""(source, start, end in seconds) → a waveform (S,), picture (3 Y X) or video (F 3 Y X), float32, or token ids
(N,), int64; must be picklable. One that reads a part of some sources alone has ``part_read``."""


def part_read(preprocess: Preprocess, source: Source) -> Source:
    """Part of ``source`` that ``preprocess`` reads; features in a store stand under the key of that part."""
    reads: Callable[[Source], Source] | None = getattr(preprocess, "part_read", None)
    return source if reads is None else reads(source)


class EncoderMode(Enum):
    """State of an encoder's tensors: as they were loaded, being trained, or trained before."""

    FROZEN = "frozen"  # as loaded; not saved
    LEARNING = "learning"  # trained now; saved
    NOISY = "noisy"  # trained before and frozen, with dropout and batch statistics while the rest is trained; saved
    TUNED = "tuned"  # trained before and frozen; saved


class Encoder(Part, nn.Module, ABC):
    """Frozen network from ``Media`` to ``Features``.

    A subclass sets ``dim`` (D, 0 without frames), ``pooled_dim`` (G, 0 without a summary), ``preprocess`` and
    ``identity``, calls ``freeze()`` last in ``__init__``, and computes in ``encode``.

    The exception is an encoder that a training tunes (see ``mmprefix.training.unfreeze``): its tensors are then saved.
    """

    mode: EncoderMode = EncoderMode.FROZEN
    can_start_empty: ClassVar[bool] = False  # ``model=None`` builds it without weights, for a saved model to fill

    input_kind: str  # a row of ``mmprefix.media.kinds.KINDS``
    dim: int
    pooled_dim: int
    preprocess: Preprocess
    identity: Provenance

    def set_mode(self, mode: EncoderMode) -> Self:
        """Set gradients and layers for ``mode``; LEARNING alone wants gradients."""
        self.mode = mode
        learning = mode is EncoderMode.LEARNING
        return self.requires_grad_(learning).train(learning or mode is EncoderMode.NOISY)

    def freeze(self) -> Self:
        """Stop training: no parameter wants a gradient and no layer is in training mode."""
        return self.set_mode(EncoderMode.TUNED if self.saved else EncoderMode.FROZEN)

    def tune(self) -> Self:
        """Train the parameters until ``freeze`` is called; they are saved from now on."""
        return self.set_mode(EncoderMode.LEARNING)  # a trainer leaves each part in the mode that it has

    @property
    def saved(self) -> bool:
        """True once its tensors are no longer those that it was loaded with, so that they are saved."""
        return self.mode is not EncoderMode.FROZEN

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode if frozen: dropout and batch statistics are frozen too."""
        return super().train(mode and self.mode in (EncoderMode.LEARNING, EncoderMode.NOISY))

    def forward(self, media: Media) -> Features:
        """Media of B inputs → frames (B T D), mask (B T), pooled (B G); without gradients unless it is tuned."""
        with torch.set_grad_enabled(self.mode is EncoderMode.LEARNING and torch.is_grad_enabled()):
            return self.encode(media)

    @property
    def trained(self) -> tuple[str, ...]:
        """Prefixes of the names of its tensors that training changes: all, or none."""
        return ("",) if self.saved else ()

    @abstractmethod
    def encode(self, media: Media) -> Features:
        """Compute the features. Padding never changes a result: a batch equals its items one at a time."""
