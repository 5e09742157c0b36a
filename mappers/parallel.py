"""Several mappers read the same features side by side, and their prefixes are joined in the order given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from mmprefix.mappers.base import Mapper
from mmprefix.types import AnyPrefix, Features, concat_prefixes


class Parallel(Mapper):
    """``mappers`` are built for the same sizes, or given built; prefix lengths add up (Prefix-AAC's global and
    temporal prefixes are such a pair, https://arxiv.org/abs/2303.17489)."""

    def __init__(self, dim: int, pooled_dim: int, width: int, mappers: list[Callable[[int, int, int], Mapper]]) -> None:
        super().__init__()
        self.mappers = nn.ModuleList(m if isinstance(m, Mapper) else m(dim, pooled_dim, width) for m in mappers)
        self.init_args["mappers"] = list(self.mappers)  # what is written down is what was built

    def for_decoder(self, layers: int, heads: int, head_width: int) -> None:
        """Each part is told."""
        for mapper in self.mappers:
            cast(Mapper, mapper).for_decoder(layers, heads, head_width)

    def merged(self) -> Mapper:
        """Each part folded."""
        parts = [cast(Mapper, mapper).merged() for mapper in self.mappers]
        same = all(new is old for new, old in zip(parts, self.mappers, strict=True))
        return self if same else Parallel(0, 0, 0, cast(Any, parts))

    @property
    def reads_frames(self) -> bool:
        """Where one of them does."""
        return any(cast(Mapper, mapper).reads_frames for mapper in self.mappers)

    def forward(self, features: Features) -> AnyPrefix:
        """Features of B inputs → embeddings (B P1+P2+... E) and their mask, or deep prefixes joined likewise."""
        return concat_prefixes([mapper(features) for mapper in self.mappers])
