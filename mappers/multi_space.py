"""Multi-space prompt: a prompt seen through several subspaces, which a gate weighs for each position.

Near to Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion (Lan et al. 2024),
https://arxiv.org/abs/2405.11464, of which only the plan was found: a short prompt is projected into several subspaces,
and a gate weighs them. The form is chosen here: P' = P + sum over spaces s of softmax(P W)_s (P A_s) B_s, with A_s
(E r) and B_s (r E), B_s at zeros before training, and the gate W (E S): P*E + S*2*E*r + E*S trained numbers. The
paper's other half, low-rank updates of the text's embeddings, is ``mmprefix.mappers.dept``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.starts import Start
from mmprefix.mappers.task_prompt import TaskPrompt


class MultiSpacePrompt(TaskPrompt):
    """``length`` embeddings (P E), the same for every input, with low-rank views of them added by a gate.

    Args:
        length: positions of the prefix.
        spaces: subspaces.
        rank: width of each.
        std: standard deviation of the embeddings before training, where their start is random.
        start: what they are before training: a text, or a part of ``mmprefix.mappers.starts``. None: random numbers.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        spaces: int = 4,
        rank: int = 8,
        std: float = 0.02,
        start: str | Start | None = None,
    ) -> None:
        super().__init__(sizes, length=length, std=std, start=start)
        if spaces < 1 or rank < 1:
            raise InputError(f"MultiSpacePrompt: spaces {spaces}, rank {rank}; give numbers from 1 on")
        width = sizes.width
        self.embeds = nn.Parameter(self.origin.numbers(length, width))
        self.down = nn.Parameter(torch.randn(spaces, width, rank) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(spaces, rank, width))
        self.gate = nn.Parameter(torch.randn(width, spaces) * width**-0.5)

    def take(self, embeds: Tensor) -> None:
        """Begin as ``embeds`` (P E)."""
        self.embeds.copy_(embeds)

    def embeddings(self) -> Tensor:
        """Embeddings and their weighed views (P E)."""
        weights = (self.embeds @ self.gate).softmax(-1)  # (P S)
        views = self.embeds @ self.down @ self.up  # (S P E)
        return self.embeds + (weights.T[..., None] * views).sum(0)
