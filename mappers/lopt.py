"""LoPT: a prompt as the product of two small matrices.

LoPT: Low-Rank Prompt Tuning for Parameter Efficient Language Models (Guo et al.), https://arxiv.org/abs/2406.19486: the
prompt (P E) is U V with U (P r) and V (r E), P*r + r*E trained numbers. The same form with rank 10 of 100 positions,
both drawn from U(-0.5, 0.5): https://github.com/XYaoooo/DPT. LoPT's own rank and rate are not known.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.starts import Start, Uniform
from mmprefix.mappers.task_prompt import TaskPrompt


class LowRankPrompt(TaskPrompt):
    """``length`` embeddings (P E) of rank r, the same for every input; a saved model holds their product.

    Args:
        length: positions of the prefix.
        rank: r, at most the smaller of length and the decoder's width.
        start: a text, or a part of ``mmprefix.mappers.starts``: the product begins as the nearest matrix of this rank
            (chosen here). None: both matrices are drawn from U(-0.5, 0.5), as in DPT's code.
    """

    first = "left"

    def __init__(self, sizes: Sizes, *, length: int = 10, rank: int = 4, start: str | Start | None = None) -> None:
        super().__init__(sizes, length=length, std=0.0, start=start)
        if not 1 <= rank <= min(length, sizes.width):
            raise InputError(
                f"LowRankPrompt.rank {rank}: give a number from 1 to {min(length, sizes.width)}, the smaller of length "
                "and the decoder's width"
            )
        self.left, self.right = nn.Parameter(torch.zeros(length, rank)), nn.Parameter(torch.zeros(rank, sizes.width))
        with torch.no_grad():
            if start is None:
                self.left.copy_(Uniform().numbers(length, rank))
                self.right.copy_(Uniform().numbers(rank, sizes.width))
            elif not self.origin.asks:
                self.take(self.origin.numbers(length, sizes.width))

    def take(self, embeds: Tensor) -> None:
        """Begin as the product nearest to ``embeds`` (P E), the singular values shared by both matrices.

        Where ``embeds`` have a lower rank, a column of U is zero and its row of V is not: with zeros in both the
        gradients of both would stay zero.
        """
        rank = self.left.shape[1]
        svd = cast(Any, torch).linalg.svd  # without types
        left, size, right = cast(tuple[Tensor, Tensor, Tensor], svd(embeds, full_matrices=False))
        size, least = size[:rank], size[0] * 1e-6
        root = torch.where(size > least, size, 0).sqrt()
        typical = root.sum() / root.count_nonzero() if root.any() else 1.0
        self.left.copy_(left[:, :rank] * root)
        self.right.copy_(torch.where(root > 0, root, typical)[:, None] * right[:rank])

    def embeddings(self) -> Tensor:
        """Product (P E) of both matrices."""
        return self.left @ self.right
