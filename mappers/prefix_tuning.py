"""Deep prefixes: keys and values for every layer of the decoder instead of embeddings before the first.

Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li, Liang), https://arxiv.org/abs/2101.00190, computes them
from a learned table by an MLP that is dropped after training. Here the MLP reads the output of any mapper, so they may
depend on the input too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Mapper, Sizes, join_layers, need_embeddings, only_embeddings
from mmprefix.mappers.combinator import Combinator
from mmprefix.mappers.observer import Observer, Starter, TextReader
from mmprefix.mappers.plain_tables import table_of_key_values
from mmprefix.mappers.starts import Start, as_start
from mmprefix.types import DeepPrefix, Features


class Deep(Combinator, DeepMapper, Starter):
    """Output of ``mapper`` (B P E), position by position through an MLP, as keys and values of every layer.

    Over ``Learned`` this is Li & Liang's prefix; a saved model then holds keys and values only.

    Args:
        mapper: the mapper whose prefix is read; InputError for one that makes more than embeddings.
        hidden: width between the two linear layers of the MLP (linear, tanh, linear); None: one linear layer.
        dropout: probability of zeroing a number of keys and values in training.
        start: over a mapper that reads no input, what keys and values are before training: a text, or a part of
            ``mmprefix.mappers.starts``. It stays as it is, and the MLP, whose last layer begins with zeros, is added to
            it (chosen here). None: what a random MLP makes.
    """

    base: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        mapper: Callable[[Sizes], Mapper],
        hidden: int | None = 512,
        dropout: float = 0.0,
        start: str | Start | None = None,
    ) -> None:
        super().__init__(sizes)
        self.mapper = mapper(sizes)
        need_embeddings(self, self.mapper)
        for part in self.mapper.modules():
            if isinstance(part, Observer):
                part.inside = True  # it need not be as small as word vectors, which the biases here would drown
        self.dropout = dropout
        before = [nn.Linear(sizes.width, hidden), nn.Tanh()] if hidden else []
        last = nn.Linear(hidden or sizes.width, self.numbers)
        self.model = nn.Sequential(*before, last)
        self.origin = None if start is None else as_start(start, 0.0)
        if self.origin is not None:
            if self.reads_input:
                raise InputError(f"Deep.start: {type(self.mapper).__name__} reads an input; leave the start out")
            positions = self.mapper(Features.empty(1)).mask.shape[1]
            self.register_buffer("base", self.origin.numbers(positions, self.numbers))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @property
    def known(self) -> bool:
        """True unless its start is still to be asked of the decoder."""
        return self.origin is None or not self.origin.asks or bool(self.base.any())

    @torch.no_grad()
    def begin(self, reader: TextReader) -> None:
        """Take the start that the decoder was needed for."""
        if self.origin is not None and self.origin.asks:
            self.base.copy_(self.origin.vectors(reader, self.sizes, len(self.base)))

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Features of B inputs → keys and values (L B H P K), real where the mapper's positions are."""
        soft = only_embeddings(self, self.mapper, self.mapper(features, context))
        vectors = self.model(soft.embeds) if self.origin is None else self.base + self.model(soft.embeds)
        return self.split_layers(F.dropout(vectors, self.dropout, self.training), soft.mask)

    @torch.no_grad()
    def merged(self) -> Mapper:
        """Over a mapper that reads no input: the table of its keys and values, without the networks behind it."""
        if self.reads_input:
            return super().merged()
        device = next(self.parameters()).device
        prefix = copy.deepcopy(super().merged()).eval()(Features.empty(1, device))
        vectors = join_layers(prefix)[prefix.mask]  # (P 2*L*H*K)
        return table_of_key_values(replace(self.sizes, frames=0, summary=0), vectors).train(self.training)
