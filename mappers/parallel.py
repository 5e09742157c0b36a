"""Several mappers read the same features side by side; their prefixes are joined in the order given."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.combinator import Combinator
from mmprefix.types import AnyPrefix, Features, concat_prefixes


class Parallel(Combinator):
    """Prefixes of all ``mappers``, one after the other; lengths add up.

    Prefix-AAC's global and temporal prefixes are such a pair (https://arxiv.org/abs/2303.17489).

    Args:
        mappers: the mappers, in the order of their prefixes.
    """

    children_option = "mappers"

    def __init__(self, sizes: Sizes, *, mappers: list[Callable[[Sizes], Mapper]]) -> None:
        super().__init__(sizes)
        self.mappers = nn.ModuleList(mapper(sizes) for mapper in mappers)

    def forward(self, features: Features, context: Features | None = None) -> AnyPrefix:
        """Features of B inputs → embeddings (B P1+P2+... E) and their mask, or deep prefixes joined likewise."""
        return concat_prefixes([mapper(features, context) for mapper in self.mappers])
