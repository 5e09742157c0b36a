"""Aligner: one table of a few vectors for all layers, read by a softmax of its own behind a gate per layer and head.

Aligner: One Global Token is Worth Millions of Parameters When Aligning Large Language Models (Ziheng et al.),
https://arxiv.org/abs/2312.05503: from the third layer on, each layer's own projections make keys (not rotated) and
values of the same table; out = attention + g * softmax(q k) v, before the output projection, g zero at first. At the
sizes of LLaMA-7B one vector is 4,096 numbers, its gates 30 * 32: 5,056 trained numbers.
"""

from __future__ import annotations

import torch
from torch import nn

from mmprefix.errors import InputError
from mmprefix.kv_cache.side_terms import GatedTokens
from mmprefix.mappers.base import Sizes, need_length
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.started import Started
from mmprefix.mappers.starts import Start
from mmprefix.types import Features, SidePrefix


class Aligner(Started):
    """``length`` learned vectors (P E') for all layers from ``first`` on, and a gate for each layer and head.

    Args:
        length: vectors of the table; the paper's range is 1 to 10.
        first: index of the first layer that reads it.
        std: standard deviation of the vectors before training.
        start: what they are before training: a text, or a part of ``mmprefix.mappers.starts``. None: random numbers.
    """

    leaves = "terms of attention"
    begun = "vectors"

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 1,
        first: int = 2,
        std: float = 1.0,
        start: str | Start | None = None,
    ) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.set_start(start, std)
        if not 0 <= first < sizes.layers:
            raise InputError(
                f"Aligner.first {first}: the decoder has {sizes.layers} layers; give a number from 0 on, below it"
            )
        self.first = first
        self.vectors = nn.Parameter(self.origin.numbers(length, self.hidden_width))
        self.gate = nn.Parameter(torch.zeros(sizes.layers - first, self.query_heads))

    def take(self, reader: TextReader) -> None:
        """Begin the table as embeddings of the start."""
        self.vectors.copy_(self.word_vectors(reader, len(self.vectors)))

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> SidePrefix:
        """Features of B inputs, of which only B counts → the table (1 1 P E') and its gates beside the cache."""
        term = GatedTokens(self.vectors[None, None], self.gate[None], self.first)
        return SidePrefix.alone(term, len(features.mask), self.sizes.width, features.mask.device)
