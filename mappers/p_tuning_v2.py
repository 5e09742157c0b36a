"""P-Tuning v2 (Liu et al.), https://arxiv.org/abs/2110.07602: a learned table of keys and values for every layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mmprefix.mappers.base import DeepMapper, Sizes, need_length
from mmprefix.types import DeepPrefix, Features, all_real


class DeepTable(DeepMapper):
    """``length`` learned keys and values for every layer and head, (P 2*L*H*K), the same for every input.

    Args:
        length: positions of the prefix.
        std: standard deviation of the numbers before training.
        dropout: probability of zeroing a single number in training.
    """

    def __init__(self, sizes: Sizes, *, length: int = 10, std: float = 0.1, dropout: float = 0.0) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.dropout = dropout
        self.table = nn.Parameter(torch.randn(length, self.numbers) * std)

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Features of B inputs, of which only B counts → keys and values (L B H P K), all real."""
        table = F.dropout(self.table, self.dropout, self.training)[None]
        return self.split_layers(table, all_real(table)).expand(len(features.mask))
