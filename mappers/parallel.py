"""Several mappers read the same features side by side, and their prefixes are joined in the order given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mmprefix.mappers.base import Mapper
from mmprefix.types import Features, Prefix


class Parallel(Mapper):
    """``mappers`` are built for the same sizes, or given built; prefix lengths add up (Prefix-AAC's global and
    temporal prefixes are such a pair, https://arxiv.org/abs/2303.17489)."""

    def __init__(self, dim: int, pooled_dim: int, width: int, mappers: list[Callable[[int, int, int], Mapper]]) -> None:
        super().__init__()
        self.mappers = nn.ModuleList(m if isinstance(m, Mapper) else m(dim, pooled_dim, width) for m in mappers)
        self.init_args["mappers"] = list(self.mappers)  # what is written down is what was built

    def forward(self, features: Features) -> Prefix:
        """Features of B inputs → embeddings (B P1+P2+... E) and their mask."""
        return join([mapper(features) for mapper in self.mappers])


def join(prefixes: list[Prefix]) -> Prefix:
    """Prefixes of the same inputs, one after the other: (B P1 E), (B P2 E) ... → (B P1+P2+... E)."""
    if len(prefixes) == 1:
        return prefixes[0]
    return Prefix(torch.cat([p.embeds for p in prefixes], dim=1), torch.cat([p.mask for p in prefixes], dim=1))
