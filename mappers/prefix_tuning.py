"""Deep prefixes: keys and values for every layer of the decoder instead of embeddings before the first.

Prefix-Tuning (Li & Liang), https://arxiv.org/abs/2101.00190, computes them from a learned table by an MLP that is
dropped after training. Here the MLP reads the output of any mapper, so they may depend on the input too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Mapper, Sizes
from mmprefix.mappers.combinator import Combinator
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.types import DeepPrefix, Features, Prefix


class Deep(Combinator, DeepMapper):
    """Output of ``mapper`` (B P E), position by position through an MLP, as keys and values of every layer.

    Over ``Learned`` this is Li & Liang's prefix; a saved model then holds keys and values only.

    Args:
        mapper: the mapper whose prefix is read; InputError for one that makes a deep prefix already.
        hidden: width between the two linear layers of the MLP (linear, tanh, linear); None: one linear layer.
        dropout: probability of zeroing a number of keys and values in training.
    """

    def __init__(
        self, sizes: Sizes, *, mapper: Callable[[Sizes], Mapper], hidden: int | None = 512, dropout: float = 0.0
    ) -> None:
        super().__init__(sizes)
        self.mapper = mapper(sizes)
        if deep := next((part for part in self.mapper.modules() if isinstance(part, DeepMapper)), None):
            raise InputError(f"Deep: {type(deep).__name__} makes a deep prefix already; leave Deep out")
        self.dropout = dropout
        before = [nn.Linear(sizes.width, hidden), nn.Tanh()] if hidden else []
        self.model = nn.Sequential(*before, nn.Linear(hidden or sizes.width, self.numbers))

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Features of B inputs → keys and values (L B H P K), real where the mapper's positions are."""
        soft: Prefix = self.mapper(features, context)
        return self.split_layers(F.dropout(self.model(soft.embeds), self.dropout, self.training), soft.mask)

    @torch.no_grad()
    def merged(self) -> Mapper:
        """Over a mapper that reads no input: the table of its keys and values, without the networks behind it."""
        if self.reads_input:
            return super().merged()
        device = next(self.parameters()).device
        soft: Prefix = copy.deepcopy(self.mapper.merged()).eval()(Features.empty(1, device))
        vectors = self.model(soft.embeds[soft.mask])  # (P 2*L*H*K)
        table = DeepTable(replace(self.sizes, frames=0, summary=0), length=len(vectors))
        table.to(device).table.copy_(vectors)
        return table.train(self.training)
