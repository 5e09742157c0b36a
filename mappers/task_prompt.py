"""Base of learned prompts: embeddings that read nothing, the same for every input, one set for a task."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from mmprefix.mappers.base import Mapper, Sizes, need_length
from mmprefix.mappers.observer import Starter, TextReader
from mmprefix.mappers.plain_tables import table_of_embeddings
from mmprefix.mappers.starts import Start, as_start
from mmprefix.types import Features, Prefix, all_real


class TaskPrompt(Starter):
    """Base of mappers to ``length`` embeddings (P E), the same for every input, that are one table after training.

    Args:
        length: positions of the prefix.
        std: standard deviation of the start, where that is random.
        start: what the embeddings are before training: a text, or a part of ``mmprefix.mappers.starts``; None: random
            numbers.
    """

    first: ClassVar[str] = "embeds"  # name of the parameter that is zeros until the decoder was asked for the start

    def __init__(self, sizes: Sizes, *, length: int, std: float, start: str | Start | None) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.length, self.origin = length, as_start(start, std)

    @abstractmethod
    def embeddings(self) -> Tensor:
        """Embeddings (P E) as they are now."""

    @abstractmethod
    def take(self, embeds: Tensor) -> None:
        """Begin as these ``embeds`` (P E), or as near to them as it can be."""

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    @property
    def known(self) -> bool:
        """True unless its start is still to be asked of the decoder."""
        return not self.origin.asks or bool(getattr(self, self.first).any())

    def begin(self, reader: TextReader) -> None:
        """Begin as its start; what the decoder is not needed for, it has begun as already."""
        if self.origin.asks:
            embeds = self.origin.embeds(reader, self.sizes, self.length)
            with torch.no_grad():
                self.take(embeds.to(getattr(self, self.first)))

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs, of which only B counts → embeddings (B P E), all real."""
        embeds = self.embeddings().expand(len(features.mask), -1, -1)
        return Prefix(embeds, all_real(embeds))

    @torch.no_grad()
    def merged(self) -> Mapper:
        """Table of its embeddings, without what made them."""
        embeds = copy.deepcopy(self).eval().embeddings()
        return table_of_embeddings(self.sizes, embeds).train(self.training)
