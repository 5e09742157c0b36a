"""Examples made into a deep prefix by a small network: few shots without their length in the prompt.

After HyperTuning: Toward Adapting Large Language Models without Back-propagation (Phang et al. 2022),
https://arxiv.org/abs/2211.12485: an encoder reads the examples, a decoder gives one vector a position, and networks of
two layers make keys and values of it. Sizes are not known; here a frozen text encoder reads the examples, and the
decoder and its networks are small and trained. ``mmprefix.recipes.prepare.texts.hyperpretraining`` makes the texts of
the paper's first training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.mappers.base import DeepMapper, Sizes, feature_tokens, need_frames, need_length
from mmprefix.mappers.query_layers import query_layers
from mmprefix.types import DeepPrefix, Features, all_real


class ExamplesPrefix(DeepMapper):
    """``length`` learned queries attend to each other and to the frames (B T D) of examples → (L B H P K).

    One learned frame stands before those of the examples; it is all that a row without examples reads.

    Args:
        length: positions of the prefix.
        layers: transformer decoder layers.
        heads: attention heads; they divide ``hidden``.
        hidden: width inside; None: the decoder's.
        dropout: probability of zeroing a number of each layer's parts in training.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 8,
        layers: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(sizes)
        need_length(self, length)
        need_frames(self)
        inner = hidden or sizes.width
        self.queries = nn.Parameter(torch.randn(length, inner) * inner**-0.5)
        self.first_frame = nn.Parameter(torch.randn(inner) * inner**-0.5)
        self.from_frames = nn.Linear(sizes.frames, inner)
        self.from_summary = nn.Linear(sizes.summary, inner) if sizes.summary else None
        self.layers = query_layers(self, inner, heads, layers=layers, dropout=dropout)
        self.to_keys, self.to_values = (
            nn.Sequential(nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, self.numbers // 2)) for _ in range(2)
        )

    def read(self, features: Features) -> Tensor:
        """Frames (B T D) of examples → one vector a position (B P hidden)."""
        b, present = len(features.mask), features.mask.any(1, keepdim=True)
        frames, mask = feature_tokens(features, self.from_frames, self.from_summary)
        frames = torch.cat([self.first_frame.expand(b, 1, -1), frames], dim=1)
        mask = torch.cat([mask.new_ones(b, 1), mask & present], dim=1)
        return self.layers(self.queries.expand(b, -1, -1), frames, memory_key_padding_mask=~mask)

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Frames (B T D) with mask → keys and values (L B H P K), all real."""
        read = self.read(features)
        vectors = torch.cat([self.to_keys(read), self.to_values(read)], dim=2)
        return self.split_layers(vectors, all_real(vectors))
