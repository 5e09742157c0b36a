"""Deep prefixes: keys and values for every layer of the decoder instead of embeddings before the first.

Prefix-Tuning (Li & Liang), https://arxiv.org/abs/2101.00190, makes them of a learned table by an MLP that is dropped
after training; P-Tuning v2 (Liu et al.), https://arxiv.org/abs/2110.07602, learns them directly. Here the MLP reads
what any mapper has made, so that they may depend on the input too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Mapper
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.types import DeepPrefix, Features, Prefix


class Deep(DeepMapper):
    """What ``mapper`` makes, (B P E), goes position by position through an MLP (linear, tanh, linear) with ``hidden``
    numbers between, and becomes keys and values of every layer. Without ``hidden`` it is one linear layer.

    Over ``Learned`` this is Li & Liang's prefix; a saved model then holds keys and values only. ``dropout`` hides
    numbers of keys and values in training.
    """

    def __init__(
        self,
        dim: int,
        pooled_dim: int,
        width: int,
        mapper: Callable[[int, int, int], Mapper],
        hidden: int | None = 512,
        dropout: float = 0.0,
        layers: int | None = None,
        heads: int | None = None,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        self.mapper = mapper if isinstance(mapper, Mapper) else mapper(dim, pooled_dim, width)
        self.init_args["mapper"] = self.mapper  # what is written down is what was built
        if deep := next((part for part in self.mapper.modules() if isinstance(part, DeepMapper)), None):
            raise InputError(f"Deep: {type(deep).__name__} makes a deep prefix already; leave Deep out")
        self.width, self.hidden, self.dropout = width, hidden, dropout
        self.known(layers, heads, head_width)

    def make(self, numbers: int) -> None:
        """The MLP, which needs the decoder's sizes."""
        inner = self.hidden or self.width
        before = [nn.Linear(self.width, inner), nn.Tanh()] if self.hidden else []
        self.model = nn.Sequential(*before, nn.Linear(inner, numbers))

    def forward(self, features: Features) -> DeepPrefix:
        """Features of B inputs → keys and values (L B H P K), real where the mapper's positions are."""
        found: Prefix = self.mapper(features)
        return self.split_layers(F.dropout(self.model(found.embeds), self.dropout, self.training), found.mask)

    @torch.no_grad()
    def merged(self) -> Mapper:
        """Over a learned table: the keys and values that come out, without what made them."""
        if not isinstance(self.mapper, Learned) or not any(self.sizes):
            return self
        found = self.model(self.mapper.embeds)  # (P 2*L*H*K)
        layers, heads, k = self.sizes
        table = DeepTable(0, 0, self.width, len(found), layers=layers, heads=heads, head_width=k)
        table.to(found.device).table.copy_(found)
        return table.train(self.training)
