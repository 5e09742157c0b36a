"""Prompt gating: a plug-in for one attribute, whose positions have a gate and a shift of their own in every layer.

An Extensible Plug-and-Play Method for Multi-Aspect Controllable Text Generation (Huang et al.),
https://arxiv.org/abs/2212.09387, and its code (https://github.com/THUNLP-MT/PromptGating4MCTG): P prompt embeddings (a
table through linear, ReLU, linear), and in every layer, behind attention and its residual sum, x * g + a at these
positions: g a sigmoid, a plain, each made from a table (P 512) by linear, tanh, linear to all layers. Each attribute
is trained alone; plug-ins of several stand one after the other, each with its own gates.

Differs: the paper gates the encoder of BART. Here the positions stand in a causal decoder's cache, so they are gated
once, at prefill, and a plug-in reads those before it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mmprefix.mappers.base import DeepMapper, Mapper, Sizes, need_length
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.started import Started
from mmprefix.mappers.starts import Start
from mmprefix.types import Features, Prefix, all_real


class GatedPrompt(DeepMapper):
    """``length`` embeddings (P E), and their gates and shifts (P 2 L E), learned directly; what training leaves.

    Args:
        length: positions of the prefix.
    """

    leaves = "gates of its positions"

    def __init__(self, sizes: Sizes, *, length: int = 10) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.embeds = nn.Parameter(torch.randn(length, sizes.width) * 0.02)
        neutral = torch.tensor([1.0, 0.0])[:, None, None]
        self.gates = nn.Parameter(neutral.expand(length, 2, sizes.layers, self.hidden_width).clone())

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs, of which only B counts → embeddings (B P E) and gates (B P 2 L E)."""
        ungated = Prefix(self.embeds[None], all_real(self.embeds[None]))
        return replace(ungated, gates=self.gates[None]).expand(len(features.mask))


class PromptGating(Started):
    """Embeddings and gates of ``length`` positions, made from tables by networks that are dropped after training.

    Args:
        length: positions; the paper's plug-ins have 100.
        hidden: width of the gates' table and network.
        start: what the table of the embeddings is before training: a text, or a part of ``mmprefix.mappers.starts``.
            None: random numbers. Its network stands behind it.
    """

    leaves = "gates of its positions"
    begun = "table"

    def __init__(self, sizes: Sizes, *, length: int = 10, hidden: int = 512, start: str | Start | None = None) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.length = length
        self.set_start(start, 0.02)
        self.table = nn.Parameter(self.origin.numbers(length, sizes.width))
        self.embed = nn.Sequential(nn.Linear(sizes.width, sizes.width), nn.ReLU(), nn.Linear(sizes.width, sizes.width))
        self.gate_table = nn.Parameter(torch.randn(length, hidden))
        self.gate, self.shift = (
            nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, sizes.layers * self.hidden_width))
            for _ in range(2)
        )

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    def take(self, reader: TextReader) -> None:
        """Begin the table as embeddings of the start."""
        self.table.copy_(self.origin.embeds(reader, self.sizes, self.length))

    def gates(self) -> Tensor:
        """Gates and shifts (P 2 L E)."""
        both = torch.stack([self.gate(self.gate_table).sigmoid(), self.shift(self.gate_table)], dim=1)
        return both.view(self.length, 2, self.sizes.layers, self.hidden_width)

    @torch.no_grad()
    def merged(self) -> Mapper:
        """The embeddings and gates themselves."""
        plain = GatedPrompt(self.sizes, length=self.length).to(self.table.device)
        plain.embeds.copy_(self.embed(self.table))
        plain.gates.copy_(self.gates())
        return plain.eval()

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs, of which only B counts → embeddings (B P E) and gates (B P 2 L E)."""
        embeds = self.embed(self.table)[None]
        return replace(Prefix(embeds, all_real(embeds)), gates=self.gates()[None]).expand(len(features.mask))
