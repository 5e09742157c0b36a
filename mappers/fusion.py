"""Fusion of an input's prefix with the context of a user: a transformer over both gives the final prefix.

UAPT, User-Aware Prefix-Tuning (Wang et al. 2023), https://arxiv.org/abs/2312.04793: a "Fusion Network" takes what is
seen and the user's words, and gives the embeddings that a frozen GPT-2 reads. Depth, heads and width are not known and
free here. A user without history has a learned context of one token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Mapper, Sizes, feature_tokens
from mmprefix.mappers.combinator import Combinator
from mmprefix.types import Features, Prefix


class Fusion(Combinator):
    """Prefix (B P E) of ``mapper``, read together with a context's frames (B T' D') and summary by a transformer.

    Raises InputError for a mapper to keys and values, and for heads that do not divide the width.

    Args:
        mapper: makes the prefix of the input; the branch's ``context`` names the branch of the user's words.
        layers: transformer layers over both.
        heads: attention heads; they divide ``hidden``.
        hidden: width inside; None: the decoder's.
        dropout: probability of zeroing a number of each layer's parts in training.
        context_dropout: probability of hiding a row's whole context in training, so that the learned empty context is
            trained too and a user without history gets a sound prefix.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        mapper: Callable[[Sizes], Mapper],
        layers: int = 2,
        heads: int = 8,
        hidden: int | None = None,
        dropout: float = 0.0,
        context_dropout: float = 0.1,
    ) -> None:
        super().__init__(sizes)
        self.mapper = mapper(sizes)
        if deep := next((part for part in self.mapper.modules() if isinstance(part, DeepMapper)), None):
            raise InputError(f"Fusion: {type(deep).__name__} makes keys and values; put Fusion inside it")
        inner = hidden or sizes.width
        if inner % heads:
            raise InputError(f"Fusion: heads={heads} does not divide the width {inner}")
        self.context_dropout = context_dropout
        self.from_prefix = nn.Linear(sizes.width, inner)
        self.from_frames, self.from_summary = (
            # encoders of sentences give vectors of length 1, whose numbers are far smaller than those of a prefix
            nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, inner)) if width else None
            for width in (sizes.context_frames, sizes.context_summary)
        )
        self.empty = nn.Parameter(torch.randn(inner) * inner**-0.5)
        self.roles = nn.Parameter(torch.randn(2, inner) * 0.02)  # of the prefix, of the context
        layer = nn.TransformerEncoderLayer(
            inner, heads, 4 * inner, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(inner), enable_nested_tensor=False)
        self.out = nn.Linear(inner, sizes.width)

    @property
    def reads_context(self) -> bool:
        """Always True."""
        return True

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs, and of their users' words → embeddings (B P E), real where the mapper's are."""
        if context is None:
            raise InputError("Fusion: reads a context and got none; name its branch as the branch's context")
        prefix: Prefix = self.mapper(features, context)
        beside, mask = self._context(context)
        both = torch.cat([self.from_prefix(prefix.embeds) + self.roles[0], beside + self.roles[1]], dim=1)
        hidden = torch.cat([prefix.mask, mask], dim=1).logical_not()
        fused = self.layers(both, src_key_padding_mask=hidden)[:, : prefix.mask.shape[1]]
        return replace(prefix, embeds=self.out(fused))

    def _context(self, context: Features) -> tuple[Tensor, Tensor]:
        """Context tokens (B 1+1+T' D') and their mask: the empty context's, the summary, the frames."""
        b = len(context.mask)
        known = context.mask.any(1)
        if self.from_summary is not None:  # a context may be a summary alone; that of an absent one is zeros
            known = known | context.pooled.any(1)
        if self.training and self.context_dropout:
            known = known & (torch.rand(b, device=known.device) >= self.context_dropout)
        tokens, mask = feature_tokens(context, self.from_frames, self.from_summary)
        mask = torch.cat([~known[:, None], mask & known[:, None]], dim=1)
        return torch.cat([self.empty.expand(b, 1, -1), tokens], dim=1), mask
