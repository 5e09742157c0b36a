"""ULPT, ultra-low-dimensional prompt tuning: a few numbers a position, blown up by a frozen random basis.

Wu et al. 2025 (https://arxiv.org/abs/2502.04501): e_ij = (sum over k of z_ik P_kj) * s_j + b_j, with P (r d) frozen and
drawn from N(0, 1) by a seed, and z (n r), the scale s (d) and the shift b (d) trained: n*r + 2d numbers. ``ULPT`` is
that, for a task; in ``UserULPT`` each user has a z of its own, P*r numbers, and s and b are shared by all users, so
that a user's prefix is a few hundred bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes, need_length
from mmprefix.mappers.starts import Start
from mmprefix.mappers.task_prompt import TaskPrompt
from mmprefix.mappers.user_rows import UserRows
from mmprefix.types import Features, Prefix


class ULPT(TaskPrompt):
    """``length`` embeddings (P E), the same for every input, of ``rank`` trained numbers each.

    Args:
        length: positions of the prefix.
        rank: trained numbers of a position.
        seed: of the frozen basis.
        std: standard deviation of the numbers before training.
        start: a text, or a part of ``mmprefix.mappers.starts``: the mean of its embeddings is the shift b, and z the
            least-squares fit of the rest (chosen here); a random one is z's own. None: random numbers.
    """

    first = "z"
    basis: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        rank: int = 16,
        seed: int = 0,
        std: float = 0.02,
        start: str | Start | None = None,
    ) -> None:
        super().__init__(sizes, length=length, std=std, start=start)
        self.register_buffer("basis", _basis("ULPT", rank, sizes.width, seed), persistent=False)
        self.z = nn.Parameter(self.origin.numbers(length, rank))
        self.scale = nn.Parameter(torch.ones(sizes.width))
        self.shift = nn.Parameter(torch.zeros(sizes.width))

    def take(self, embeds: Tensor) -> None:
        """Begin as near to ``embeds`` (P E) as numbers of this rank can be."""
        self.shift.copy_(embeds.mean(0))
        self.z.copy_((embeds - self.shift) @ self.basis.pinverse())

    def embeddings(self) -> Tensor:
        """Numbers through the basis (P E)."""
        return self.z @ self.basis * self.scale + self.shift


class UserULPT(UserRows):
    """``length`` embeddings (B P E) of an input's user, of ``rank`` trained numbers each.

    Args:
        length: positions of the prefix.
        rank: trained numbers of a position.
        capacity: users, at most.
        seed: of the frozen basis.
        std: standard deviation of the numbers before training.
        nobody: share of the rows of a batch whose user is hidden in training, so that strangers have a prefix too.
    """

    basis: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        rank: int = 16,
        capacity: int = 1000,
        seed: int = 0,
        std: float = 0.02,
        nobody: float = 0.1,
    ) -> None:
        need_length(self, length)
        basis = _basis("UserULPT", rank, sizes.width, seed)
        super().__init__(sizes, length=length, numbers=rank, capacity=capacity, std=std, nobody=nobody)
        self.register_buffer("basis", basis, persistent=False)  # the seed is in the recipe
        self.scale = nn.Parameter(torch.ones(sizes.width))
        self.shift = nn.Parameter(torch.zeros(sizes.width))

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Hashes of users (B 8) → embeddings (B P E) and their mask."""
        z, mask = self.of_users(features)
        return Prefix(z @ self.basis * self.scale + self.shift, mask)


def _basis(name: str, rank: int, width: int, seed: int) -> Tensor:
    """Frozen basis (r E) of a seed; InputError for no rank."""
    if rank < 1:
        raise InputError(f"{name}.rank {rank}: give a number from 1 on")
    return torch.randn(rank, width, generator=torch.Generator().manual_seed(seed))
