"""Learned prefix that reads nothing: the same for every input, one for a task.

Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester, Al-Rfou, Constant),
https://arxiv.org/abs/2104.08691
"""

from __future__ import annotations

import torch
from torch import nn

from mmprefix.mappers.base import Mapper, Sizes, need_length
from mmprefix.types import Features, Prefix, all_real


class Learned(Mapper):
    """``length`` learned embeddings (P E), the same for every input.

    Args:
        length: positions of the prefix.
        std: standard deviation of the normal distribution that they are drawn from before training.
    """

    def __init__(self, sizes: Sizes, *, length: int = 10, std: float = 0.02) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.embeds = nn.Parameter(torch.randn(length, sizes.width) * std)

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs, of which only B counts → embeddings (B P E), all real."""
        embeds = self.embeds.expand(len(features.mask), -1, -1)
        return Prefix(embeds, all_real(embeds))
