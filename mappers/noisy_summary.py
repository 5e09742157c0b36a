"""A mapper that is trained on noisy summaries: captions' vectors stand in for those of pictures in training.

Text-Only Training for Image Captioning using Noise-Injected CLIP (CapDec; Nukrai, Mokady, Globerson),
https://arxiv.org/abs/2211.00575. In an aligned space a picture lies near its captions, not on them. Noise makes all
vectors around a caption say the same, so that a picture's vector in its place does too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmprefix.errors import InputError, require_one_of
from mmprefix.mappers.base import Mapper, Sizes, need_summary
from mmprefix.mappers.combinator import Combinator
from mmprefix.types import AnyPrefix, Features


class NoisySummary(Combinator):
    """Prefix of ``mapper``, which in training reads summaries (B G) with normal noise, scaled to their length again.

    Args:
        mapper: the mapper that reads them.
        std: root mean square length of the noise of a vector, as a share of the vector's length. With 1/cos² - 1 = std²
            a caption's vector with noise lies as far from itself as one at the cosine cos.
        shape: "white", as in the paper, the same in all G directions; "batch", as the vectors of a batch differ from
            their mean: a space that 700 pairs have made has few directions in which anything differs. Chosen here.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        mapper: Callable[[Sizes], Mapper],
        std: float = 1.0,
        shape: Literal["white", "batch"] = "white",
    ) -> None:
        super().__init__(sizes)
        need_summary(self)
        require_one_of("NoisySummary.shape", shape, ("white", "batch"))
        if std < 0:
            raise InputError(f"NoisySummary.std {std}: give a number from 0 on")
        self.mapper, self.std, self.shape = mapper(sizes), std, shape

    def forward(self, features: Features, context: Features | None = None) -> AnyPrefix:
        """Features of B inputs → the prefix of ``mapper``; without noise outside training."""
        if self.training and self.std:
            features = replace(features, pooled=self.noisy(features.pooled))
        child: Any = self.mapper
        prefix: AnyPrefix = child(features, context)
        return prefix

    def noisy(self, rows: Tensor) -> Tensor:
        """Summaries (B G) with noise, each as long as before (B G)."""
        if self.shape == "white":
            noise = torch.randn_like(rows) / rows.shape[1] ** 0.5
        else:
            apart = rows - rows.mean(0)
            noise = torch.randn(len(rows), len(rows), dtype=rows.dtype, device=rows.device) @ apart
            noise = noise / apart.square().sum().sqrt().clamp(min=1e-12)
        length = rows.square().sum(1, keepdim=True).sqrt()
        return length * normalize(rows + self.std * length * noise, dim=1)
