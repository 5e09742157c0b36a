"""Several mappers read the same features side by side, and their prefixes are joined in the order given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from mmprefix.mappers.base import Mapper
from mmprefix.types import AnyPrefix, DeepPrefix, Features, InputError, MixedPrefix, Prefix


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

    def folded(self) -> Mapper:
        """Each part folded."""
        parts = [cast(Mapper, mapper).folded() for mapper in self.mappers]
        same = all(new is old for new, old in zip(parts, self.mappers, strict=True))
        return self if same else Parallel(0, 0, 0, cast(Any, parts))

    @property
    def needs_frames(self) -> bool:
        """Where one of them does."""
        return any(cast(Mapper, mapper).needs_frames for mapper in self.mappers)

    def forward(self, features: Features) -> AnyPrefix:
        """Features of B inputs → embeddings (B P1+P2+... E) and their mask, or deep prefixes joined likewise."""
        return join([mapper(features) for mapper in self.mappers])


def join(prefixes: Sequence[AnyPrefix]) -> AnyPrefix:
    """Prefixes of the same inputs, one after the other: embeddings (B P1 E), (B P2 E) ... → (B P1+P2+... E), keys and
    values likewise. Where there are both, all that is deep stands before all embeddings.

    Raises InputError for several deep prefixes of which some are gated: a gate is one for all positions.
    """
    if len(prefixes) == 1:
        return prefixes[0]
    deep = [p.deep if isinstance(p, MixedPrefix) else p for p in prefixes if not isinstance(p, Prefix)]
    soft = [p.soft if isinstance(p, MixedPrefix) else p for p in prefixes if not isinstance(p, DeepPrefix)]
    if len(deep) > 1 and any(p.gate is not None for p in deep):
        raise InputError("a gated deep prefix cannot be joined with another deep prefix; use one of them")
    if not soft:
        return _deep(deep)
    embeds, mask = torch.cat([p.embeds for p in soft], dim=1), torch.cat([p.mask for p in soft], dim=1)
    return MixedPrefix(_deep(deep), Prefix(embeds, mask)) if deep else Prefix(embeds, mask)


def _deep(prefixes: list[DeepPrefix]) -> DeepPrefix:
    if len(prefixes) == 1:
        return prefixes[0]
    keys, values = torch.cat([p.keys for p in prefixes], dim=3), torch.cat([p.values for p in prefixes], dim=3)
    return DeepPrefix(keys, values, torch.cat([p.mask for p in prefixes], dim=1))
