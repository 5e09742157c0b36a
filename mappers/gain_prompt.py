"""Gain prompt: learned embeddings, each position and each number with a learned factor.

Near to Scaled Prompt-Tuning for Few-Shot Natural Language Generation (Hu et al. 2023),
https://arxiv.org/abs/2309.06759, whose formula was not found; the form is chosen here: e_ij = g_i h_j P_ij, with the
factors g (P) and h (E) at ones before training, P*E + P + E trained numbers. A factor of a whole position moves it from
silence to loudness in few steps, which the position's single numbers cannot.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.mappers.base import Sizes
from mmprefix.mappers.starts import Start
from mmprefix.mappers.task_prompt import TaskPrompt


class GainPrompt(TaskPrompt):
    """``length`` embeddings (P E), the same for every input, times a factor a position and a factor a number.

    Args:
        length: positions of the prefix.
        std: standard deviation of the embeddings before training, where their start is random.
        start: what they are before training: a text, or a part of ``mmprefix.mappers.starts``. None: random numbers.
    """

    def __init__(self, sizes: Sizes, *, length: int = 10, std: float = 0.02, start: str | Start | None = None) -> None:
        super().__init__(sizes, length=length, std=std, start=start)
        self.embeds = nn.Parameter(self.origin.numbers(length, sizes.width))
        self.of_positions = nn.Parameter(torch.ones(length))
        self.of_numbers = nn.Parameter(torch.ones(sizes.width))

    def take(self, embeds: Tensor) -> None:
        """Begin as ``embeds`` (P E)."""
        self.embeds.copy_(embeds)

    def embeddings(self) -> Tensor:
        """Embeddings times their factors (P E)."""
        return self.embeds * self.of_positions[:, None] * self.of_numbers
