"""ClipCap's MLP mapper: the summary through one hidden layer becomes the whole prefix at once.

ClipCap: CLIP Prefix for Image Captioning (Mokady, Hertz, Bermano), https://arxiv.org/abs/2111.09734
"""

from __future__ import annotations

from torch import nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes, need_summary
from mmprefix.types import Features, Prefix, all_real


class MLP(Mapper):
    """Linear, tanh, linear: from the summary (B G) to ``length`` embeddings (B P E).

    Args:
        length: positions of the prefix.
        hidden: width between the layers; None: half the prefix, ``width * length // 2``, as in the paper's code.
        layers: linear layers, at least 2; each but the last is followed by a tanh.
    """

    def __init__(self, sizes: Sizes, *, length: int = 10, hidden: int | None = None, layers: int = 2) -> None:
        super().__init__(sizes)
        if layers < 2:
            raise InputError(f"MLP.layers {layers}: give a number from 2 on; with one layer it is Linear")
        need_summary(self)
        self.length = length
        last = sizes.width * length
        inner = hidden or last // 2
        more = [part for _ in range(layers - 2) for part in (nn.Linear(inner, inner), nn.Tanh())]
        self.model = nn.Sequential(nn.Linear(sizes.summary, inner), nn.Tanh(), *more, nn.Linear(inner, last))

    @property
    def reads_frames(self) -> bool:
        """Always False: it reads the summary."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features with a summary (B G) → embeddings (B P E), all real."""
        embeds = self.model(features.pooled).unflatten(1, (self.length, self.sizes.width))
        return Prefix(embeds, all_real(embeds))
