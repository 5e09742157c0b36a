"""One linear layer: a position for every frame, or all positions from the summary.

The simplest connector; with ``stack`` neighbouring frames are joined first, as speech models do to shorten a
sequence (SLAM-ASR, https://arxiv.org/abs/2402.08846). Prefix-AAC's ablation puts it in the place of its mappers
(https://arxiv.org/abs/2303.17489), and ClipCap's code uses it for long prefixes from a summary.
"""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn import functional as F

from mmprefix.errors import require_one_of
from mmprefix.mappers.base import Mapper, Sizes, need_frames, need_summary
from mmprefix.types import Features, Prefix, all_real


class Linear(Mapper):
    """Frames (B T D) → embeddings (B P E), P = T / ``stack`` rounded up; a position is real if one of its frames is.

    Args:
        stack: neighbouring frames that become one position; does not count with ``reads="summary"``.
        reads: "frames", or "summary": the summary (B G) becomes ``length`` positions.
        length: positions of the prefix with ``reads="summary"``; does not count with frames.
        bias: add a bias.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        stack: int = 1,
        reads: Literal["frames", "summary"] = "frames",
        length: int = 10,
        bias: bool = True,
    ) -> None:
        super().__init__(sizes)
        require_one_of("reads", reads, ("frames", "summary"))
        self.stack, self.reads, self.length = stack, reads, length
        if reads == "frames":
            need_frames(self)
            self.linear = nn.Linear(sizes.frames * stack, sizes.width, bias)
        else:
            need_summary(self)
            self.linear = nn.Linear(sizes.summary, sizes.width * length, bias)

    @property
    def reads_frames(self) -> bool:
        """True with ``reads="frames"``."""
        return self.reads == "frames"

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs → embeddings (B P E) and mask (B P)."""
        if self.reads == "summary":
            embeds = self.linear(features.pooled).unflatten(1, (self.length, -1))
            return Prefix(embeds, all_real(embeds))
        missing = -features.frames.shape[1] % self.stack
        frames = F.pad(features.frames * features.mask[..., None], (0, 0, 0, missing))  # (B P*stack D)
        frames = frames.view(len(frames), -1, self.stack * frames.shape[2])  # (B P stack*D)
        mask = F.pad(features.mask, (0, missing)).view(len(frames), -1, self.stack).any(dim=2)  # (B P)
        return Prefix(self.linear(frames), mask)
