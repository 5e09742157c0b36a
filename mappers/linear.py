"""One linear layer a frame: every frame of the encoder becomes one prefix position.

The simplest connector; with ``stack`` neighbouring frames are joined first, as speech models do to shorten a
sequence (SLAM-ASR, https://arxiv.org/abs/2402.08846).
"""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from mmprefix.mappers.base import Mapper, need_frames
from mmprefix.types import Features, Prefix


class Linear(Mapper):
    """Frames (B T D) → embeddings (B P E), P = T / ``stack`` rounded up; a position is real if one of its frames is."""

    def __init__(self, dim: int, pooled_dim: int, width: int, stack: int = 1) -> None:
        super().__init__()
        need_frames(self, dim)
        self.stack = stack
        self.linear = nn.Linear(dim * stack, width)

    def forward(self, features: Features) -> Prefix:
        """Frames (B T D) and their mask → embeddings (B P E) and mask (B P)."""
        missing = -features.frames.shape[1] % self.stack
        frames = F.pad(features.frames * features.mask[..., None], (0, 0, 0, missing))  # (B P*stack D)
        mask = F.pad(features.mask, (0, missing)).unflatten(1, (-1, self.stack)).any(dim=2)  # (B P)
        return Prefix(self.linear(frames.unflatten(1, (-1, self.stack)).flatten(2)), mask)
