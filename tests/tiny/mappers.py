"""Mappers of kinds that the library does not have, and a decoder as mappers see it: word vectors of any text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.types import DeepPrefix, Features, Prefix, all_real
from mmprefix.weights.source import Provenance


class Reader:
    """Decoder as a mapper sees it before training: these ``vectors`` (N E) for every text, random keys and values."""

    def __init__(self, vectors: Tensor, sizes: Sizes | None = None) -> None:
        self.vectors, self.sizes = vectors, sizes
        self.texts: list[str] = []
        self.identity = Provenance("a reader", None, "0" * 64)

    def token_ids(self, text: str) -> list[int]:
        self.texts.append(text)
        return [*range(len(self.vectors))]

    def word_ids(self) -> list[int]:
        return [*range(len(self.vectors))]

    def token_vectors(self, ids: list[int]) -> Tensor:
        return self.vectors[ids]

    def token_key_values(self, ids: list[int]) -> DeepPrefix:
        assert self.sizes is not None
        shape = (self.sizes.layers, 1, self.sizes.heads, len(ids), self.sizes.head_width)
        return DeepPrefix(torch.randn(shape), torch.randn(shape), torch.ones(1, len(ids), dtype=torch.bool))

    def word_vectors(self, text: str) -> Tensor:
        return self.token_vectors(self.token_ids(text))

    def key_values(self, text: str, positions: int) -> DeepPrefix:
        self.texts.append(text)
        return self.token_key_values([0] * positions)


class ContextSum(Mapper):
    """``length`` embeddings from the summary, plus a projection of the context's summary and of its mean frame."""

    def __init__(self, sizes: Sizes, *, length: int = 2) -> None:
        super().__init__(sizes)
        self.length = length
        self.own = nn.Linear(sizes.summary, length * sizes.width)
        self.beside = nn.Linear(sizes.context_summary + sizes.context_frames, length * sizes.width, bias=False)

    @property
    def reads_frames(self) -> bool:
        return False

    @property
    def reads_context(self) -> bool:
        return True

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        assert context is not None
        count = context.mask.sum(1, keepdim=True).clamp(min=1)
        mean = (context.frames * context.mask[..., None]).sum(1) / count
        summed = self.own(features.pooled) + self.beside(torch.cat([context.pooled, mean], dim=1))
        embeds = summed.unflatten(1, (self.length, self.sizes.width))
        return Prefix(embeds, all_real(embeds))


class LowRank(Mapper):
    """``length`` learned embeddings as a product of two small matrices: a mapper that reads no input."""

    def __init__(self, sizes: Sizes, *, length: int = 4, rank: int = 2, dropout: float = 0.0) -> None:
        super().__init__(sizes)
        self.left = nn.Parameter(torch.randn(length, rank))
        self.right = nn.Parameter(torch.randn(rank, sizes.width))
        self.dropout = nn.Dropout(dropout)

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        embeds = self.dropout(self.left @ self.right).expand(len(features.mask), -1, -1)
        return Prefix(embeds, all_real(embeds))


class Merging(LowRank):
    """Mapper that reads the summary and merges to another class."""

    def __init__(self, sizes: Sizes, *, length: int = 4) -> None:
        super().__init__(sizes, length=length)
        self.own = nn.Linear(sizes.summary, sizes.width)

    @property
    def reads_input(self) -> bool:
        return True

    @property
    def reads_frames(self) -> bool:
        return False

    @torch.no_grad()
    def merged(self) -> Mapper:
        merged = Merged(self.sizes, length=len(self.left))
        merged.embeds.copy_(self.left @ self.right)
        merged.own.load_state_dict(self.own.state_dict())
        return merged.train(self.training)

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        embeds = super().forward(features).embeds + self.own(features.pooled)[:, None]
        return Prefix(embeds, all_real(embeds))


class Merged(Mapper):
    """``Merging`` with its product computed."""

    def __init__(self, sizes: Sizes, *, length: int = 4) -> None:
        super().__init__(sizes)
        self.embeds = nn.Parameter(torch.zeros(length, sizes.width))
        self.own = nn.Linear(sizes.summary, sizes.width)

    @property
    def reads_frames(self) -> bool:
        return False

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        embeds = self.embeds + self.own(features.pooled)[:, None]
        return Prefix(embeds, all_real(embeds))
