"""Base of mappers with one table of numbers that may begin as what the decoder makes of a text or of words."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Mapper
from mmprefix.mappers.observer import Starter, TextReader
from mmprefix.mappers.starts import Start, as_start


class Started(DeepMapper, Starter):
    """Base of such mappers: ``begun`` names the table, which is zeros until the decoder was asked for the start.

    A saved model does not name its start, which may be a file.
    """

    begun: ClassVar[str]
    start: str | Start | None
    origin: Start

    def set_start(self, start: str | Start | None, std: float) -> None:
        """Take a text, or a part of ``mmprefix.mappers.starts``; None: random numbers of this standard deviation."""
        self.start, self.origin = start, as_start(start, std)

    @abstractmethod
    def take(self, reader: TextReader) -> None:
        """Begin the table as the start that the decoder is needed for."""

    @property
    def known(self) -> bool:
        """True unless its start is still to be asked of the decoder."""
        return not self.origin.asks or bool(getattr(self, self.begun).any())

    def begin(self, reader: TextReader) -> None:
        """Begin as its start; what the decoder is not needed for, it has begun as already."""
        if self.origin.asks:
            with torch.no_grad():
                self.take(reader)

    def merged(self) -> Mapper:
        """Itself without its start, over the same tensors."""
        merged = super().merged()
        if self.start is None or not isinstance(merged, Started):
            return merged
        plain = copy.copy(merged)
        plain.start, plain.origin = None, as_start(None, 0.0)
        cast(Any, plain).init_args = {**merged.init_args, "start": None}
        return plain

    def word_vectors(self, reader: TextReader, length: int) -> Tensor:
        """Embeddings (P E) of the start. Raises InputError where the layers are wider than embeddings (OPT-350m)."""
        if self.hidden_width != self.sizes.width:
            raise InputError(
                f"{type(self).__name__}.start: embeddings have {self.sizes.width} numbers, and the decoder's "
                f"layers are {self.hidden_width} wide; give mmprefix.mappers.starts.Normal, Uniform or Zeros"
            )
        return self.origin.embeds(reader, self.sizes, length)

    def by_layer(self, vectors: Tensor) -> Tensor:
        """Vectors (P 2*L*H*K) → keys and values (2 L H P K)."""
        sizes = self.sizes
        return vectors.view(-1, 2, sizes.layers, sizes.heads, sizes.head_width).permute(1, 2, 3, 0, 4)
