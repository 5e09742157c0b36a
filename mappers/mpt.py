"""MPT, multitask prompt tuning: one prompt for all tasks or users, times a matrix of rank one for each.

Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning (Wang et al. 2023),
https://arxiv.org/abs/2303.02861: the prompt of task t is P* times, number by number, U_t V_t, with P* (P E) shared, U_t
(P r) and V_t (r E): r (P + E) numbers a task, r = 1 in the paper. There U and V come from N(0, 0.02), so that a prompt
begins near zero (https://github.com/huggingface/peft); here their product begins as ones, so that it begins as P*
(chosen here). In place of the paper's distillation of P* from prompts of single tasks there is a start, their mean:
``mmprefix.mappers.starts.Average``.
"""

from __future__ import annotations

import torch
from torch import nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes, need_length
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.starts import Start, as_start
from mmprefix.mappers.user_rows import UserRows
from mmprefix.types import Features, Prefix


class MultitaskPrompt(UserRows):
    """``length`` embeddings (B P E) of an input's task or user: those of all, times its matrix of low rank.

    The task's name stands in the column of users; who has none gets the matrix of nobody.

    Args:
        length: positions of the prefix.
        rank: of the matrix.
        capacity: tasks or users, at most.
        std: standard deviation of the shared embeddings, where their start is random.
        spread: standard deviation of a matrix's factors around their start.
        nobody: share of the rows of a batch whose task is hidden in training, so that others have a prefix too.
        start: what the shared embeddings are before training: a text, or a part of ``mmprefix.mappers.starts``. None:
            random numbers.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        rank: int = 1,
        capacity: int = 100,
        std: float = 0.02,
        spread: float = 0.02,
        nobody: float = 0.1,
        start: str | Start | None = None,
    ) -> None:
        need_length(self, length)
        if rank < 1:
            raise InputError(f"MultitaskPrompt.rank {rank}: give a number from 1 on")
        numbers = rank * (length + sizes.width)
        super().__init__(sizes, length=1, numbers=numbers, capacity=capacity, std=spread, nobody=nobody)
        with torch.no_grad():
            self.rows[:, : length * rank] += 1
            self.rows[:, length * rank :] += 1 / rank
        self.positions, self.rank, self.start, self.origin = length, rank, start, as_start(start, std)
        self.embeds = nn.Parameter(self.origin.numbers(length, sizes.width))

    @torch.no_grad()
    def begin(self, reader: TextReader) -> None:
        """Begin the shared embeddings as the start that the decoder was needed for."""
        if self.origin.asks:
            self.embeds.copy_(self.origin.embeds(reader, self.sizes, self.positions))

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Hashes of tasks (B 8) → embeddings (B P E), all real."""
        rows, _ = self.of_users(features)
        rows = rows[:, 0]  # (B r*P + r*E)
        left = rows[:, : self.positions * self.rank].view(-1, self.positions, self.rank)
        factors = left @ rows[:, self.positions * self.rank :].view(-1, self.rank, self.sizes.width)
        return Prefix(self.embeds * factors, features.mask.new_ones(len(rows), self.positions))
