"""Prefix-AAC's mappers: tokens, normalised, and learned constants attend to each other; the constants are kept.

Prefix tuning for automated audio captioning (Kim, Sung-Bin, Oh; ICASSP 2023), https://arxiv.org/abs/2303.17489. Its
temporal and its global mapper are one network behind two ways to make tokens: every frame is one (and gets a position),
or the summary is cut into pieces. Tokens, batch normalisation and initial values differ from ClipCap's transformer.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.errors import InputError, require_one_of
from mmprefix.mappers.base import Mapper, Sizes, need_frames, need_summary
from mmprefix.mappers.transformer import TransformerStack
from mmprefix.types import Features, Prefix, all_real


class PrefixAAC(Mapper):
    """``length`` learned constants follow the tokens through ``layers`` layers and become the prefix (B P E).

    Args:
        reads: "frames": the temporal mapper, a token for each frame (B T D), with sinusoidal positions and ``dropout``;
            "summary": the global mapper, ``pieces`` tokens cut from the summary (B G), zeros filling the last one.
        length: positions of the prefix; published: 15 from frames, 11 from the summary.
        layers: layers of the transformer.
        heads: attention heads of each layer; they divide the decoder's width.
        relu: apply a ReLU to tokens after normalisation; published: for AudioCaps, not for Clotho.
        pieces: tokens that the summary is cut into; published: 11 of 48 values each.
        dropout: probability of zeroing a number of tokens with positions, in training.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        reads: Literal["frames", "summary"] = "frames",
        length: int = 15,
        layers: int = 4,
        heads: int = 8,
        relu: bool = True,
        pieces: int = 11,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(sizes)
        require_one_of("reads", reads, ("frames", "summary"))
        self.reads, self.relu, self.pieces, self.dropout = reads, relu, pieces, dropout
        self.size = self._token_size()
        self.project = nn.Linear(self.size, sizes.width)
        self.norm = nn.BatchNorm1d(sizes.width)
        self.prefix_const = nn.Parameter(torch.empty(length, sizes.width))
        self.transformer = TransformerStack(sizes.width, heads, layers)
        nn.init.kaiming_uniform_(self.prefix_const)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight)

    def _token_size(self) -> int:
        """Values in a token: of a frame, or of a piece of the summary, rounded up."""
        if self.reads == "frames":
            need_frames(self)
            return self.sizes.frames
        need_summary(self)
        if not 1 <= self.pieces <= self.sizes.summary:
            raise InputError(f"pieces: a summary of {self.sizes.summary} values cannot be cut into {self.pieces}")
        return math.ceil(self.sizes.summary / self.pieces)

    @property
    def reads_frames(self) -> bool:
        """True with ``reads="frames"``."""
        return self.reads == "frames"

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs → embeddings (B P E), all real."""
        tokens, mask = self._tokens(features)  # (B N size), (B N)
        real = self.norm(self.project(tokens[mask]))  # padding has no part in the statistics of a batch
        x = real.new_zeros(*mask.shape, real.shape[-1])
        x[mask] = F.relu(real) if self.relu else real
        if self.reads == "frames":
            x = F.dropout(x + sinusoids(x), self.dropout, self.training)
        constants = self.prefix_const.expand(len(x), -1, -1)
        visible = torch.cat([mask, all_real(constants)], dim=1)
        embeds = self.transformer(torch.cat([x, constants], dim=1), visible)[:, x.shape[1] :]
        return Prefix(embeds, all_real(embeds))

    def _tokens(self, features: Features) -> tuple[Tensor, Tensor]:
        """Tokens (B N size) and which of them are real (B N)."""
        if self.reads == "frames":
            return features.frames, features.mask
        missing = self.size * self.pieces - features.pooled.shape[1]
        tokens = F.pad(features.pooled, (0, missing)).view(-1, self.pieces, self.size)
        return tokens, all_real(tokens)


def sinusoids(x: Tensor) -> Tensor:
    """Positions (N E) of Attention Is All You Need (https://arxiv.org/abs/1706.03762) for tokens ``x`` (B N E)."""
    n, width = x.shape[1:]
    position = torch.arange(n, device=x.device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=x.device, dtype=torch.float32) * (-math.log(10000.0) / width))
    table = x.new_empty(n, width)
    table[:, 0::2] = (position * rate).sin().to(x.dtype)
    table[:, 1::2] = (position * rate[: width // 2]).cos().to(x.dtype)
    return table
