"""ULPT, ultra-low-dimensional prompt tuning: a few numbers a position, blown up by a frozen random basis.

Ultra-Low-Dimensional Prompt Tuning via Random Projection (Wu et al. 2025), https://arxiv.org/abs/2502.04501:
e_ij = (sum over k of z_ik P_kj) * s_j + b_j, with P (r d) frozen and drawn from N(0, 1) by a seed, and z (n r), the
scale s (d) and the shift b (d) trained: n*r + 2d numbers. In ``UserULPT`` each user has a z of its own, and s and b are
shared, so that a user's prefix is a few hundred bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.mappers.base import Sizes, need_length
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.random_basis import RandomBasis, need_rank
from mmprefix.mappers.starts import Start, as_start
from mmprefix.mappers.task_prompt import TaskPrompt
from mmprefix.mappers.user_rows import UserRows
from mmprefix.types import Features, Prefix


class ULPT(RandomBasis, TaskPrompt):
    """``length`` embeddings (P E), the same for every input, of ``rank`` trained numbers each.

    Args:
        length: positions of the prefix.
        rank: trained numbers of a position.
        seed: of the frozen basis.
        std: standard deviation of the numbers before training.
        start: a text, or a part of ``mmprefix.mappers.starts``: the mean of its embeddings is the shift b, and z the
            least-squares fit of the rest (chosen here); a random one is z's own.
    """

    first = "z"

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
        need_rank(self, rank)
        super().__init__(sizes, length=length, std=std, start=start)
        self.set_basis(rank, seed)
        self.z = nn.Parameter(self.origin.numbers(length, rank))

    def take(self, embeds: Tensor) -> None:
        """Begin as near to ``embeds`` (P E) as numbers of this rank can be."""
        self.z.copy_(self.fit(embeds))

    def embeddings(self) -> Tensor:
        """Numbers through the basis (P E)."""
        return self.through_basis(self.z)


class UserULPT(RandomBasis, UserRows):
    """``length`` embeddings (B P E) of an input's user, of ``rank`` trained numbers each.

    Args:
        length: positions of the prefix.
        rank: trained numbers of a position.
        capacity: users, at most.
        seed: of the frozen basis.
        std: standard deviation of the numbers before training.
        nobody: share of the rows of a batch whose user is hidden in training, which trains what strangers get.
        start: what every user's numbers are before training, as for ``ULPT``. None: random numbers.
    """

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
        start: str | Start | None = None,
    ) -> None:
        need_length(self, length)
        need_rank(self, rank)
        super().__init__(sizes, length=length, numbers=rank, capacity=capacity, std=std, nobody=nobody)
        self.set_basis(rank, seed)
        self.start, self.origin = start, as_start(start, std)

    @torch.no_grad()
    def begin(self, reader: TextReader) -> None:
        """Let every row be as near to the start as numbers of this rank can be."""
        if self.start is not None:
            own = self.origin.numbers(self.length, len(self.basis))
            numbers = self.fit(self.origin.embeds(reader, self.sizes, self.length)) if self.origin.asks else own
            self.rows.copy_(numbers.flatten().expand_as(self.rows))

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Hashes of users (B 8) → embeddings (B P E) and their mask."""
        z, mask = self.of_users(features)
        return Prefix(self.through_basis(z), mask)
