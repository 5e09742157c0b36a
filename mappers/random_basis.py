"""Base of embeddings that are a few numbers through a frozen random basis, scaled and shifted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper


class RandomBasis(Mapper):
    """Base of mappers over a frozen basis (r E), with a trained scale and shift (E)."""

    basis: Tensor

    def set_basis(self, rank: int, seed: int) -> None:
        """Draw the basis by its seed, which is in the recipe."""
        basis = torch.randn(rank, self.sizes.width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("basis", basis, persistent=False)
        self.scale = nn.Parameter(torch.ones(self.sizes.width))
        self.shift = nn.Parameter(torch.zeros(self.sizes.width))

    def through_basis(self, z: Tensor) -> Tensor:
        """Numbers (... r) → embeddings (... E)."""
        return z @ self.basis * self.scale + self.shift

    def fit(self, embeds: Tensor) -> Tensor:
        """Make the mean of ``embeds`` (P E) the shift, and return the numbers (P r) that fit the rest best."""
        embeds = embeds.to(self.basis)
        self.shift.copy_(embeds.mean(0))
        return (embeds - self.shift) @ self.basis.pinverse()


def need_rank(mapper: Mapper, rank: int) -> None:
    """Refuse a basis without vectors."""
    if rank < 1:
        raise InputError(f"{type(mapper).__name__}.rank {rank}: give a number from 1 on")
