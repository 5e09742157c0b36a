"""Numbers scaled to 0 ... 1 by the range that they have in the training data, then read by another mapper.

Decoder signals of device-directed speech detection are read so (Wagner et al., https://arxiv.org/abs/2403.14438).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes, need_summary
from mmprefix.mappers.combinator import Combinator
from mmprefix.mappers.observer import Observer
from mmprefix.types import AnyPrefix, Features, to_list


class MinMax(Combinator, Observer):
    """Each number of the summary (B G) scaled by its range, clamped to 0 ... 1, and read by ``mapper``.

    The range is taken by ``observe`` before training, and is saved with the trained tensors. A number that never
    changed in the training data is read as 0.

    Args:
        mapper: the mapper that reads the scaled numbers.
    """

    low: Tensor
    high: Tensor

    def __init__(self, sizes: Sizes, *, mapper: Callable[[Sizes], Mapper]) -> None:
        super().__init__(sizes)
        need_summary(self)
        self.mapper = mapper(sizes)
        self.refuse_observers()
        self.register_buffer("low", torch.full((sizes.summary,), torch.inf))
        self.register_buffer("high", torch.full((sizes.summary,), -torch.inf))

    @property
    def known(self) -> bool:
        """True once a range has been observed."""
        return bool((self.low <= self.high).all())

    def observe(self, features: Features) -> None:
        """Widen the range by the summaries (B G) of ``features``."""
        self.low.copy_(torch.minimum(self.low, features.pooled.amin(0)))
        self.high.copy_(torch.maximum(self.high, features.pooled.amax(0)))

    def observed(self) -> str:
        """The range of each number."""
        low, high = (", ".join(f"{value:.4g}" for value in to_list(part)) for part in (self.low, self.high))
        return f"numbers lie between {low} and {high}"

    def merged(self) -> Mapper:
        """Merged child alone where it reads no input, else the same scaling before the merged child."""
        return super().merged() if self.reads_input else self.mapper.merged()

    def forward(self, features: Features, context: Features | None = None) -> AnyPrefix:
        """Features with a summary (B G) → prefix of ``mapper``; InputError before a range is known."""
        if not self.known:
            raise InputError("MinMax: has seen no training data, so it knows no range; train it first")
        span = self.high - self.low
        scaled = ((features.pooled - self.low) / torch.where(span > 0, span, torch.ones_like(span))).clamp(0, 1)
        pooled = torch.where(span > 0, scaled, torch.zeros_like(scaled))
        return self.mapper(replace(features, pooled=pooled), context)
