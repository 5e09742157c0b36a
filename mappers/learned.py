"""Learned prefix that reads nothing: the same for every input, one for a task.

Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester, Al-Rfou, Constant),
https://arxiv.org/abs/2104.08691
"""

from __future__ import annotations

import torch
from torch import nn

from mmprefix.mappers.base import Mapper, Sizes, need_length
from mmprefix.mappers.observer import Starter, TextReader
from mmprefix.mappers.starts import Start, as_start
from mmprefix.types import Features, Prefix, all_real


class Learned(Starter):
    """``length`` learned embeddings (P E), the same for every input.

    Args:
        length: positions of the prefix.
        std: standard deviation of the normal distribution that they are drawn from before training.
        start: what they are before training instead: word vectors of a text, repeated as needed, or a part of
            ``mmprefix.mappers.starts``. None: random numbers.
    """

    def __init__(self, sizes: Sizes, *, length: int = 10, std: float = 0.02, start: str | Start | None = None) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.start, self.origin = start, as_start(start, std)
        self.embeds = nn.Parameter(self.origin.numbers(length, sizes.width))

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    @property
    def known(self) -> bool:
        """True unless its start is still to be asked of the decoder."""
        return not self.origin.asks or bool(self.embeds.any())

    @torch.no_grad()
    def begin(self, reader: TextReader) -> None:
        """Begin as the start that the decoder was needed for."""
        if self.origin.asks:
            self.embeds.copy_(self.origin.embeds(reader, self.sizes, len(self.embeds)))

    def merged(self) -> Mapper:
        """Copy over the same embeddings without their start."""
        if self.start is None:
            return self
        table = Learned(self.sizes, length=len(self.embeds))
        table.embeds = self.embeds
        return table.train(self.training)

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs, of which only B counts → embeddings (B P E), all real."""
        embeds = self.embeds.expand(len(features.mask), -1, -1)
        return Prefix(embeds, all_real(embeds))
