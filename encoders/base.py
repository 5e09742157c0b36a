"""The contract of every encoder: it is frozen, brings its own preprocessing, and tells what it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from mmprefix.media import Source
from mmprefix.parts import Part
from mmprefix.sources import Identity
from mmprefix.types import Features, Media

Preprocess = Callable[[Source, float, float | None], Tensor]
"""(source, start, end in seconds) → a waveform (S,) or picture (3 Y X), float32. Small, picklable: workers get it."""


class Encoder(Part, nn.Module, ABC):
    """A frozen network that reads ``Media`` and writes ``Features``.

    A subclass sets ``dim`` (D, 0 without frames), ``pooled_dim`` (G, 0 without a summary), ``preprocess`` and
    ``identity``, calls ``freeze()`` last in ``__init__``, and computes in ``encode``.
    """

    media: Literal["image", "audio"]
    dim: int
    pooled_dim: int
    preprocess: Preprocess
    identity: Identity

    def freeze(self) -> Self:
        """No parameter wants a gradient and no layer is ever in training mode."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever ``mode`` says: dropout and batch statistics are frozen too."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, media: Media) -> Features:
        """Media of B inputs → frames (B T D), mask (B T), pooled (B G), without gradients."""
        return self.encode(media)

    @abstractmethod
    def encode(self, media: Media) -> Features:
        """What ``forward`` computes. Padding never changes a result: a batch equals its items one at a time."""
