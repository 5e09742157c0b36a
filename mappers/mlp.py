"""ClipCap's MLP mapper: the summary through one hidden layer becomes the whole prefix at once.

ClipCap: CLIP Prefix for Image Captioning (Mokady, Hertz, Bermano), https://arxiv.org/abs/2111.09734
"""

from __future__ import annotations

from torch import nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, all_real, need_summary
from mmprefix.types import Features, Prefix


class MLP(Mapper):
    """Linear, tanh, linear: from the summary (B G) to ``length`` embeddings (B P E).

    ``hidden`` is the width between; by default half the prefix, ``width * length // 2``, as the paper's code has it.
    ``layers`` above 2 adds linear layers of that width, each followed by a tanh.
    """

    @property
    def reads_frames(self) -> bool:
        """Never: it reads the summary."""
        return False

    def __init__(
        self, dim: int, pooled_dim: int, width: int, length: int = 10, hidden: int | None = None, layers: int = 2
    ) -> None:
        super().__init__()
        if layers < 2:
            raise InputError(f"MLP.layers {layers}: give a number from 2 on; with one layer it is Linear")
        need_summary(self, pooled_dim)
        self.width, self.length = width, length
        inner = hidden or width * length // 2
        more = [part for _ in range(layers - 2) for part in (nn.Linear(inner, inner), nn.Tanh())]
        self.model = nn.Sequential(nn.Linear(pooled_dim, inner), nn.Tanh(), *more, nn.Linear(inner, width * length))

    def forward(self, features: Features) -> Prefix:
        """Features with a summary (B G) → embeddings (B P E), all real."""
        embeds = self.model(features.pooled).unflatten(1, (self.length, self.width))
        return Prefix(embeds, all_real(embeds))
