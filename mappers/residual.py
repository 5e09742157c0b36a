"""Residual prompt tuning: a prompt plus what a small network makes of it, which lets it be short and learn fast.

Residual Prompt Tuning: Improving Prompt Tuning with Residual Reparameterization (Razdaibiedina et al. 2023),
https://arxiv.org/abs/2305.03937: P' = P + MLP(P), one network for all positions or one for each: linear to 800, ReLU,
linear back, and layer normalization, as in the published code (https://github.com/arazd/ResidualPrompts). After
training the network is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.starts import Start
from mmprefix.mappers.task_prompt import TaskPrompt


class ResidualPrompt(TaskPrompt):
    """``length`` embeddings (P E), the same for every input, of a table P as P + MLP(P).

    Args:
        length: positions of the prefix.
        hidden: width between the two linear layers.
        shared: one network for all positions; False: one for each.
        norm: layer normalization behind the network.
        std: standard deviation of the table before training, where its start is random.
        start: what the table is before training: a text, or a part of ``mmprefix.mappers.starts``. None: random
            numbers. The network's own part comes on top.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        hidden: int = 800,
        shared: bool = True,
        norm: bool = True,
        std: float = 0.02,
        start: str | Start | None = None,
    ) -> None:
        super().__init__(sizes, length=length, std=std, start=start)
        if hidden < 1:
            raise InputError(f"ResidualPrompt.hidden {hidden}: give a width from 1 on")
        self.embeds = nn.Parameter(self.origin.numbers(length, sizes.width))
        width = sizes.width

        def network() -> nn.Sequential:
            after = [nn.LayerNorm(width)] if norm else []
            return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), *after)

        self.networks = nn.ModuleList(network() for _ in range(1 if shared else length))

    def take(self, embeds: Tensor) -> None:
        """Begin with the table ``embeds`` (P E)."""
        self.embeds.copy_(embeds)

    def embeddings(self) -> Tensor:
        """Table plus what the networks make of it (P E)."""
        rows = self.embeds.chunk(len(self.networks))
        made = torch.cat([network(row) for network, row in zip(self.networks, rows, strict=True)])
        return self.embeds + made
