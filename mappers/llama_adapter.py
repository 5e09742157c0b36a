"""LLaMA-Adapter: a prompt in each of the upper layers, read by a softmax of its own behind a gate that begins at zero.

LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention (Zhang et al.),
https://arxiv.org/abs/2303.16199: the layer's own projections make keys (not rotated) and values of the prompt's P
vectors; out = attention + tanh(g) * softmax(q k) v, with one g for each layer and head, before the output projection.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mmprefix.errors import InputError
from mmprefix.kv_cache.side_terms import GatedTokens
from mmprefix.mappers.base import Mapper, Sizes, need_embeddings, need_length, only_embeddings
from mmprefix.mappers.combinator import Combinator
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.started import Started
from mmprefix.mappers.starts import Start
from mmprefix.types import Features, SidePrefix


class LlamaAdapter(Started, Combinator):
    """``length`` learned vectors (P E) for each layer from ``first`` on, and a gate for each layer and head.

    Args:
        length: vectors of a layer's prompt.
        first: index of the first layer that has one; the released models leave out the first two of 32.
        std: standard deviation of the vectors before training.
        mapper: mapper to embeddings; the mean of its real positions is added to every vector, as LLaMA-Adapter adds
            what it makes of a picture. None: the prompt is the same for every input.
        start: what the vectors of each layer are before training: a text, or a part of ``mmprefix.mappers.starts``.
            None: random numbers.
    """

    leaves = "terms of attention"
    begun = "vectors"

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        first: int = 2,
        std: float = 1.0,
        mapper: Callable[[Sizes], Mapper] | None = None,
        start: str | Start | None = None,
    ) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.set_start(start, std)
        if not 0 <= first < sizes.layers:
            raise InputError(
                f"LlamaAdapter.first {first}: the decoder has {sizes.layers} layers; give a number from 0 on, below it"
            )
        self.first, count = first, sizes.layers - first
        numbers = self.origin.numbers(count * length, self.hidden_width)
        self.vectors = nn.Parameter(numbers.view(count, length, self.hidden_width))
        self.gate = nn.Parameter(torch.zeros(count, self.query_heads))
        self.mapper = None if mapper is None else mapper(sizes)
        if self.mapper is not None:
            need_embeddings(self, self.mapper)
            if self.hidden_width != sizes.width:
                raise InputError(
                    f"LlamaAdapter.mapper: makes embeddings of {sizes.width} numbers, and the decoder's layers are "
                    f"{self.hidden_width} wide; leave the mapper out, or put it in model.branches beside this prefix"
                )

    def take(self, reader: TextReader) -> None:
        """Begin the vectors of every layer as embeddings of the start."""
        self.vectors.copy_(self.word_vectors(reader, self.vectors.shape[1]).expand_as(self.vectors))

    def forward(self, features: Features, context: Features | None = None) -> SidePrefix:
        """Features of B inputs → terms beside the cache, vectors (1 L' P E), or (B L' P E) with a ``mapper``."""
        vectors = self.vectors[None]
        if self.mapper is not None:
            prefix = only_embeddings(self, self.mapper, self.mapper(features, context))
            real = prefix.mask[..., None].to(prefix.embeds.dtype)
            mean = (prefix.embeds * real).sum(1) / real.sum(1).clamp(min=1)
            vectors = vectors + mean[:, None, None]
        term = GatedTokens(vectors, self.gate.tanh()[None], self.first)
        return SidePrefix.alone(term, len(features.mask), self.sizes.width, features.mask.device)
