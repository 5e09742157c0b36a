"""A learned table of keys and values for every layer.

P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks (Liu et al.),
https://arxiv.org/abs/2110.07602

It may start as the keys and values of a text, with a frozen first position, as Cartridges do (Eyuboglu et al.,
https://arxiv.org/abs/2506.06266), who found that better than a random start by far.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.mappers.base import DeepMapper, Mapper, Sizes, frozen_positions, join_layers, need_length
from mmprefix.mappers.observer import Starter, TextReader
from mmprefix.mappers.starts import Start, as_start
from mmprefix.types import DeepPrefix, Features, all_real


class DeepTable(DeepMapper, Starter):
    """``length`` learned keys and values for every layer and head, (P 2*L*H*K), the same for every input.

    Args:
        length: positions of the prefix.
        std: standard deviation of the numbers before training.
        dropout: probability of zeroing a single number in training.
        start: a text; before training the table is what the decoder has in its cache at the first ``length`` positions
            of it, repeated as needed; or a part of ``mmprefix.mappers.starts``. None: random numbers.
        frozen: number of first positions that are not trained; None: 1 where they start as a text, else 0.
    """

    sink: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        std: float = 0.1,
        dropout: float = 0.0,
        start: str | Start | None = None,
        frozen: int | None = None,
    ) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.length, self.dropout, self.start, self.origin = length, dropout, start, as_start(start, std)
        self.frozen = frozen_positions(self, length, self.origin.is_text, frozen)
        table = self.origin.numbers(length, self.numbers)
        self.table = nn.Parameter(table[self.frozen :].clone())
        if self.frozen:
            self.register_buffer("sink", table[: self.frozen].clone())

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    @property
    def known(self) -> bool:
        """True for a table that was filled, or that begins at random."""
        return not self.origin.asks or bool(self.table.any())

    def begin(self, reader: TextReader) -> None:
        """Fill the table with the start that the decoder was needed for."""
        if self.origin.asks:
            self._fill(self.origin.vectors(reader, self.sizes, self.length))

    def fill(self, prefix: DeepPrefix) -> None:
        """Copy keys and values of one input (L 1 H P K) into the table, the frozen positions too."""
        self._fill(join_layers(prefix)[0])

    @torch.no_grad()
    def _fill(self, vectors: Tensor) -> None:
        self.table.copy_(vectors[self.frozen :])
        if self.frozen:
            self.sink.copy_(vectors[: self.frozen])

    def merged(self) -> Mapper:
        """Copy over the same table without a start that is a part, for that may name files."""
        if not isinstance(self.start, Start):
            return self
        plain = DeepTable(self.sizes, length=self.length, dropout=self.dropout, frozen=self.frozen)
        plain.table = self.table
        if self.frozen:
            plain.sink = self.sink
        return plain.train(self.training)

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Features of B inputs, of which only B counts → keys and values (L B H P K), all real."""
        whole = torch.cat([self.sink, self.table]) if self.frozen else self.table
        table = F.dropout(whole, self.dropout, self.training)[None]
        return self.split_layers(table, all_real(table)).expand(len(features.mask))
