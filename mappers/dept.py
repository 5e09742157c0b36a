"""DePT, decomposed prompt tuning: a short prompt, and low-rank updates of the embeddings of the text behind it.

DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning (Shi, Lipani 2024), https://arxiv.org/abs/2309.05173:
prompt (m E), and token i of the text is read as E_i + (alpha / sqrt(r)) (A B)_i, with A (N r) drawn as the weights of a
linear layer and B (r E) zeros before training: m*E + N*r + r*E trained numbers. In the published code
(https://github.com/ZhengxiangShi/DePT) m = 40, N = 256, r = 45, alpha = 8, and the prompt's rate (0.3 to 0.4) is a
hundred times that of A and B (5e-4 to 5e-3). There the text is the encoder's input; a decoder's text is the prompt and
what is written after it, of which the first N tokens are updated, in training, search and scoring alike.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.starts import Start
from mmprefix.mappers.task_prompt import TaskPrompt
from mmprefix.types import Features, Prefix


class DecomposedPrompt(TaskPrompt):
    """``length`` embeddings (P E), the same for every input, and updates (N E) of the first N tokens of the text.

    Args:
        length: positions of the prefix.
        reach: tokens of the text that are updated, N.
        rank: r of the updates.
        alpha: their factor, divided by the root of the rank.
        std: standard deviation of the embeddings before training, where their start is random.
        start: what they are before training: a text, or a part of ``mmprefix.mappers.starts``. None: random numbers.
    """

    leaves = "updates of the text's embeddings"

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 4,
        reach: int = 64,
        rank: int = 8,
        alpha: float = 8.0,
        std: float = 0.02,
        start: str | Start | None = None,
    ) -> None:
        super().__init__(sizes, length=length, std=std, start=start)
        if reach < 1 or rank < 1:
            raise InputError(f"DecomposedPrompt: reach {reach}, rank {rank}; give numbers from 1 on")
        self.options: dict[str, Any] = {"length": length, "reach": reach, "rank": rank, "alpha": alpha}
        self.factor = alpha / math.sqrt(rank)
        self.embeds = nn.Parameter(self.origin.numbers(length, sizes.width))
        self.left = nn.Parameter(torch.empty(reach, rank))
        nn.init.kaiming_uniform_(self.left, a=math.sqrt(5))
        self.right = nn.Parameter(torch.zeros(rank, sizes.width))

    def take(self, embeds: Tensor) -> None:
        """Begin as ``embeds`` (P E)."""
        self.embeds.copy_(embeds)

    def embeddings(self) -> Tensor:
        """Embeddings (P E) of the prompt alone."""
        return self.embeds

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs, of which only B counts → embeddings (B P E), all real, and updates (B N E)."""
        updates = (self.factor * (self.left @ self.right)).expand(len(features.mask), -1, -1)
        return replace(super().forward(features, context), text_updates=updates)

    def merged(self) -> Mapper:
        """Copy over the same tensors without their start: the product of the matrices would be larger than they are."""
        if self.init_args["start"] is None:
            return self
        plain = DecomposedPrompt(self.sizes, **self.options)
        plain.embeds, plain.left, plain.right = self.embeds, self.left, self.right
        return plain.train(self.training)
