"""Deep prefix from a few numbers a layer by frozen random matrices, small enough to be searched without gradients.

After BBTv2: Towards a Gradient-Free Future with Large Language Models (Sun et al.), https://arxiv.org/abs/2205.11200:
what is added at layer l is A_l z_l, with z_l trained from 0, and A_l drawn once from N(0, s_l). With
s_l = alpha std_l / (sqrt(d) sigma) a z of the size sigma moves by alpha of what the layer holds. There A_l z_l is added
to hidden states of placeholder tokens, whose spread is std_l; here to the keys and values of a text (chosen here).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Mapper, Sizes, join_layers, need_length
from mmprefix.mappers.observer import Starter, TextReader
from mmprefix.mappers.plain_tables import table_of_key_values
from mmprefix.types import DeepPrefix, Features, all_real


class ProjectedPrefix(DeepMapper, Starter):
    """``length`` keys and values for every layer and head: those of a text, plus A_l z_l.

    Trained are L rows of ``numbers_a_layer``; ``mmprefix.training.optimization.evolution.RowEvolution`` searches each
    on its own. A saved model holds the sum, as a ``DeepTable``.

    Args:
        length: positions of the prefix. Published: 50.
        numbers_a_layer: d, trained numbers of a layer. Published: 500; a CMA-ES keeps their square.
        start: text whose keys and values the prefix begins as, repeated as needed.
        alpha: part of a layer's standard deviation that z moves. Published: 0.2.
        sigma: size of z that does so: the step size at which the search begins. Published: 0.2.
        seed: of the matrices.
    """

    basis: Tensor
    base: Tensor
    spread: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 50,
        numbers_a_layer: int = 500,
        start: str = "It was",
        alpha: float = 0.2,
        sigma: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(sizes)
        need_length(self, length)
        for name, value in (("numbers_a_layer", numbers_a_layer), ("alpha", alpha), ("sigma", sigma)):
            if not 0 < value < float("inf"):
                raise InputError(f"ProjectedPrefix.{name} {value}: give a number above 0")
        self.length, self.start, self.scale = length, start, alpha / (numbers_a_layer**0.5 * sigma)
        shape = (sizes.layers, numbers_a_layer, 2, length * sizes.heads * sizes.head_width)
        basis = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("basis", basis, persistent=False)  # the seed is in the recipe
        self.register_buffer("base", torch.zeros(length, self.numbers))
        self.register_buffer("spread", torch.zeros(sizes.layers, 2))
        self.z = nn.Parameter(torch.zeros(sizes.layers, numbers_a_layer))

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    @property
    def known(self) -> bool:
        """True once it holds a text's keys and values."""
        return bool(self.base.any())

    @torch.no_grad()
    def begin(self, reader: TextReader) -> None:
        """Take the keys and values of the text, and how far those of each layer spread."""
        prefix = reader.key_values(self.start, self.length)
        self.base.copy_(join_layers(prefix)[0])
        both = torch.stack([prefix.keys, prefix.values], dim=1).flatten(2)  # (L 2 H*P*K)
        mean, std = both.mean(-1, keepdim=True), both.std(-1, keepdim=True)
        self.spread.copy_(both.clamp(mean - 3 * std, mean + 3 * std).std(-1))  # few numbers are far out

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Features of B inputs, of which only B counts → keys and values (L B H P K), all real."""
        sizes, scale = self.sizes, self.spread[..., None] * self.scale
        moved = torch.einsum("ld,ldkn->lkn", self.z, self.basis) * scale  # (L 2 P*H*K)
        shape = (sizes.layers, 2, self.length, sizes.heads, sizes.head_width)
        table = (self.base + moved.view(shape).permute(2, 1, 0, 3, 4).flatten(1))[None]
        return self.split_layers(table, all_real(table)).expand(len(features.mask))

    @torch.no_grad()
    def merged(self) -> Mapper:
        """Table of the sum, without the matrices."""
        (vectors,) = join_layers(self(Features.empty(1, self.z.device)))
        return table_of_key_values(self.sizes, vectors).train(self.training)
