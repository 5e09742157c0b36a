"""The contract of every encoder: it is frozen, brings its own preprocessing, and tells what it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from mmprefix.media.source import Source
from mmprefix.parts import Part
from mmprefix.types import Features, Media
from mmprefix.weights.source import Provenance

Preprocess = Callable[[Source, float, float | None], Tensor]
"""(source, start, end in seconds) → a waveform (S,), picture (3 Y X) or video (F 3 Y X), float32; must be picklable."""


class Encoder(Part, nn.Module, ABC):
    """A frozen network that reads ``Media`` and writes ``Features``.

    A subclass sets ``dim`` (D, 0 without frames), ``pooled_dim`` (G, 0 without a summary), ``preprocess`` and
    ``identity``, calls ``freeze()`` last in ``__init__``, and computes in ``encode``.

    The exception is one that is ``tune``d (see ``mmprefix.training.unfreeze``): its tensors are then part of what is saved.
    """

    tuned = False  # whether its tensors are no longer those that it was loaded with
    learning = False  # whether its tensors are being trained now
    stands_alone = False  # whether ``model=None`` builds it without weights, for a saved model to fill
    noisy = False  # whether, though frozen, it drops out and takes statistics of batches while the rest is trained

    input_kind: str  # a row of ``mmprefix.media.kinds.KINDS``
    dim: int
    pooled_dim: int
    preprocess: Preprocess
    identity: Provenance

    def freeze(self) -> Self:
        """No parameter wants a gradient and no layer is in training mode."""
        self.learning = False
        return self.requires_grad_(False).eval()

    def tune(self) -> Self:
        """Parameters are trained until ``freeze`` is called, and saved from now on."""
        self.tuned = self.learning = True
        return self.requires_grad_(True).train()  # a trainer leaves each part in the mode that it finds it in

    def train(self, mode: bool = True) -> Self:
        """Frozen, it stays in evaluation mode whatever ``mode`` says: dropout and batch statistics are frozen too."""
        return super().train(mode and (self.learning or self.noisy))

    def forward(self, media: Media) -> Features:
        """Media of B inputs → frames (B T D), mask (B T), pooled (B G); frozen, without gradients."""
        with torch.set_grad_enabled(self.learning and torch.is_grad_enabled()):
            return self.encode(media)

    @property
    def trained(self) -> tuple[str, ...]:
        """What the names of the tensors begin with that training changes."""
        return ("",) if self.tuned else ()

    @abstractmethod
    def encode(self, media: Media) -> Features:
        """What ``forward`` computes. Padding never changes a result: a batch equals its items one at a time."""
