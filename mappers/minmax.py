"""Numbers brought to 0 ... 1 by the range that they have in the training data, before another mapper reads them.

So the decoder signals of device-directed speech detection are read (Wagner et al., https://arxiv.org/abs/2403.14438).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, need_summary
from mmprefix.types import AnyPrefix, Features


class MinMax(Mapper):
    """Each number of the summary (B G) is scaled by its range, cut off at 0 and 1, and read by ``mapper``.

    The range is learned by ``observe`` before training, and is part of what is saved. A number that never changed in
    the training data is read as 0.
    """

    low: Tensor
    high: Tensor

    def __init__(self, dim: int, pooled_dim: int, width: int, mapper: Callable[[int, int, int], Mapper]) -> None:
        super().__init__()
        need_summary(self, pooled_dim)
        self.mapper = mapper if isinstance(mapper, Mapper) else mapper(dim, pooled_dim, width)
        self.init_args["mapper"] = self.mapper  # what is written down is what was built
        self.register_buffer("low", torch.full((pooled_dim,), torch.inf))
        self.register_buffer("high", torch.full((pooled_dim,), -torch.inf))

    @property
    def known(self) -> bool:
        """Whether a range has been observed."""
        return bool((self.low <= self.high).all())

    def observe(self, values: Tensor) -> None:
        """Widens the range by ``values`` (B G)."""
        self.low.copy_(torch.minimum(self.low, values.amin(0)))
        self.high.copy_(torch.maximum(self.high, values.amax(0)))

    def for_decoder(self, layers: int, heads: int, head_width: int) -> None:
        """What reads the numbers is told."""
        self.mapper.for_decoder(layers, heads, head_width)

    @property
    def reads_frames(self) -> bool:
        """Where what reads the numbers does."""
        return self.mapper.reads_frames

    def forward(self, features: Features) -> AnyPrefix:
        """Features with a summary (B G) → what ``mapper`` makes of it; InputError before a range is known."""
        if not self.known:
            raise InputError("MinMax: has seen no training data, so it knows no range; train it first")
        span = self.high - self.low
        scaled = ((features.pooled - self.low) / torch.where(span > 0, span, torch.ones_like(span))).clamp(0, 1)
        return self.mapper(replace(features, pooled=torch.where(span > 0, scaled, torch.zeros_like(scaled))))
