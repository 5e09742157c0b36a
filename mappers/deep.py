"""Deep prefixes: keys and values for every layer of the decoder instead of embeddings before the first.

Prefix-Tuning (Li & Liang), https://arxiv.org/abs/2101.00190, makes them of a learned table by an MLP that is dropped
after training; P-Tuning v2 (Liu et al.), https://arxiv.org/abs/2110.07602, learns them directly. Here the MLP reads
what any mapper has made, so that they may depend on the input too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.mappers.base import Mapper, all_real, need_length
from mmprefix.mappers.learned import Learned
from mmprefix.types import DeepPrefix, Features, InputError, Prefix


class _OfLayers(Mapper):
    """What both kinds share: L, H and K are the decoder's, or numbers that a saved recipe holds."""

    sizes = (0, 0, 0)  # L, H, K, once they are known

    def for_decoder(self, layers: int, heads: int, head_width: int) -> None:
        """Makes the tensors; InputError where they were made for another decoder."""
        if not any(self.sizes):
            self.sizes = layers, heads, head_width
            self.init_args |= {"layers": layers, "heads": heads, "head_width": head_width}
            self.make(2 * layers * heads * head_width)
        elif self.sizes != (layers, heads, head_width):
            raise InputError(
                f"{type(self).__name__}: is for {_say(*self.sizes)}; the decoder has {_say(layers, heads, head_width)}"
            )

    def known(self, layers: int | None, heads: int | None, head_width: int | None) -> None:
        """Takes the sizes that were given, if they were; InputError where some are missing."""
        if layers and heads and head_width:
            self.for_decoder(layers, heads, head_width)
        elif layers or heads or head_width:
            raise InputError(
                f"{type(self).__name__}: layers={layers}, heads={heads}, head_width={head_width}: leave out all three "
                "(they are the decoder's), or give all"
            )

    @abstractmethod
    def make(self, numbers: int) -> None:
        """Makes the tensors that end in the keys and values of a position, ``numbers`` = 2*L*H*K."""

    def parted(self, found: Tensor, mask: Tensor) -> DeepPrefix:
        """Vectors (B P 2*L*H*K), mask (B P) → keys and values (L B H P K)."""
        layers, heads, k = self.sizes
        both = found.unflatten(2, (2, layers, heads, k)).permute(2, 3, 0, 4, 1, 5)  # (2 L B H P K)
        return DeepPrefix(both[0], both[1], mask)


class DeepTable(_OfLayers):
    """``length`` learned keys and values for every layer and head, (P 2*L*H*K), the same for every input.

    ``std`` is their deviation before training. ``dropout`` hides single numbers in training.
    """

    def __init__(
        self,
        dim: int,
        pooled_dim: int,
        width: int,
        length: int = 10,
        std: float = 0.1,
        dropout: float = 0.0,
        layers: int | None = None,
        heads: int | None = None,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        need_length(self, length)
        self.length, self.std, self.dropout = length, std, dropout
        self.known(layers, heads, head_width)

    def make(self, numbers: int) -> None:
        """The table, (P 2*L*H*K)."""
        self.table = nn.Parameter(torch.randn(self.length, numbers) * self.std)

    def forward(self, features: Features) -> DeepPrefix:
        """Features of B inputs, of which only B counts → keys and values (L B H P K), all real."""
        table = F.dropout(self.table, self.dropout, self.training)[None]
        return self.parted(table, all_real(table)).expand(len(features.mask))


class Deep(_OfLayers):
    """What ``mapper`` makes, (B P E), goes position by position through an MLP (linear, tanh, linear) with ``hidden``
    numbers between, and becomes keys and values of every layer. Without ``hidden`` it is one linear layer.

    Over ``Learned`` this is Li & Liang's prefix; a saved model then holds keys and values only. ``dropout`` hides
    numbers of keys and values in training.
    """

    def __init__(
        self,
        dim: int,
        pooled_dim: int,
        width: int,
        mapper: Callable[[int, int, int], Mapper],
        hidden: int | None = 512,
        dropout: float = 0.0,
        layers: int | None = None,
        heads: int | None = None,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        self.mapper = mapper if isinstance(mapper, Mapper) else mapper(dim, pooled_dim, width)
        self.init_args["mapper"] = self.mapper  # what is written down is what was built
        if deep := next((part for part in self.mapper.modules() if isinstance(part, _OfLayers)), None):
            raise InputError(f"Deep: {type(deep).__name__} makes a deep prefix already; leave Deep out")
        self.width, self.hidden, self.dropout = width, hidden, dropout
        self.known(layers, heads, head_width)

    def make(self, numbers: int) -> None:
        """The MLP, which needs the decoder's sizes."""
        inner = self.hidden or self.width
        before = [nn.Linear(self.width, inner), nn.Tanh()] if self.hidden else []
        self.model = nn.Sequential(*before, nn.Linear(inner, numbers))

    def forward(self, features: Features) -> DeepPrefix:
        """Features of B inputs → keys and values (L B H P K), real where the mapper's positions are."""
        found: Prefix = self.mapper(features)
        return self.parted(F.dropout(self.model(found.embeds), self.dropout, self.training), found.mask)

    @torch.no_grad()
    def folded(self) -> Mapper:
        """Over a learned table: the keys and values that come out, without what made them."""
        if not isinstance(self.mapper, Learned) or not any(self.sizes):
            return self
        found = self.model(self.mapper.embeds)  # (P 2*L*H*K)
        layers, heads, k = self.sizes
        table = DeepTable(0, 0, self.width, len(found), layers=layers, heads=heads, head_width=k)
        table.to(found.device).table.copy_(found)
        return table.train(self.training)


def _say(layers: int, heads: int, head_width: int) -> str:
    return f"{layers} layers of {heads} heads of {head_width}"
