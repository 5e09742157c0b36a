"""Prefix in cross-attention: learned keys and values that stand before the frames a decoder looks at.

Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li, Liang), https://arxiv.org/abs/2101.00190, and Control
Prefixes (Clive, Cao, Rei), https://arxiv.org/abs/2110.08329, tune BART and T5 with three sets of keys and values: the
encoder's, the decoder's own, and those of its cross-attention. This is the third, for Whisper too; the second is
``DeepTable``.
"""

from __future__ import annotations

import torch
from torch import nn

from mmprefix.kv_cache.side_terms import CrossKeyValues
from mmprefix.mappers.base import DeepMapper, Sizes, need_length
from mmprefix.types import Features, SidePrefix


class CrossPrefix(DeepMapper):
    """``length`` learned keys and values for the cross-attention of every layer and head, the same for every input.

    Args:
        length: positions before the frames.
        std: standard deviation of the numbers before training.
    """

    leaves = "keys and values of cross-attention"

    def __init__(self, sizes: Sizes, *, length: int = 10, std: float = 0.1) -> None:
        super().__init__(sizes)
        need_length(self, length)
        shape = (2, sizes.layers, self.query_heads, length, sizes.head_width)  # cross-attention shares no keys
        self.key_values = nn.Parameter(torch.randn(*shape) * std)

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> SidePrefix:
        """Features of B inputs, of which only B counts → keys and values (1 L H P K) for the decoder's memory."""
        keys, values = self.key_values[:, None]
        term = CrossKeyValues(keys, values)
        return SidePrefix.alone(term, len(features.mask), self.sizes.width, features.mask.device)
