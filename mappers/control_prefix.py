"""Control prefixes: each value of an attribute has a short deep prefix of its own, in front of the task's.

Control Prefixes for Parameter-Efficient Text Generation (Clive, Cao, Rei 2022), https://arxiv.org/abs/2110.08329: both
are tables of embeddings that one shared network, linear, tanh, linear, turns into the keys and values of every layer.
"""

from __future__ import annotations

import torch
from torch import nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Sizes, need_length
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.starts import Start, as_start
from mmprefix.mappers.user_rows import UserRows
from mmprefix.types import DeepPrefix, Features, all_real


class ControlPrefix(UserRows, DeepMapper):
    """``control_length`` keys and values of an input's attribute, then ``length`` of the task's (L B H P K).

    The attribute is any column of names (a user, a domain, a style): read it by ``mmprefix.encoders.user_id.UserId`` in
    a branch that is named as the column. A value that was not trained has the row of nobody. In the paper a model with
    cross-attention has a table and a network of its own for each kind of attention; here only self-attention has one.

    Args:
        length: positions of the task's prefix.
        control_length: positions of the prefix of one value.
        hidden: width between the two linear layers of the shared network.
        capacity: values of the attribute, at most.
        std: standard deviation of the embeddings before training.
        nobody: share of the rows of a batch whose value is hidden in training, so that others have a prefix too.
        dropout: probability of zeroing a number of keys and values in training.
        start: what the task's embeddings are before training, which pass the network: a text, or a part of
            ``mmprefix.mappers.starts``. None: random numbers.
    """

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        sizes: Sizes,
        *,
        length: int = 48,
        control_length: int = 2,
        hidden: int = 800,
        capacity: int = 100,
        std: float = 1.0,
        nobody: float = 0.1,
        dropout: float = 0.0,
        start: str | Start | None = None,
    ) -> None:
        need_length(self, length)
        if control_length < 1:
            raise InputError(f"ControlPrefix.control_length {control_length}: give a number from 1 on")
        super().__init__(sizes, length=control_length, numbers=sizes.width, capacity=capacity, std=std, nobody=nobody)
        self.origin = as_start(start, std)
        self.task = nn.Parameter(self.origin.numbers(length, sizes.width))
        self.model = nn.Sequential(nn.Linear(sizes.width, hidden), nn.Tanh(), nn.Linear(hidden, self.numbers))
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def begin(self, reader: TextReader) -> None:
        """Begin the task's embeddings as the start that the decoder was needed for."""
        if self.origin.asks:
            self.task.copy_(self.origin.embeds(reader, self.sizes, len(self.task)))

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Hashes of attributes (B 8) → keys and values (L B H P K) and their mask: the attribute's, then the task's."""
        control, mask = self.of_users(features)
        task = self.model(self.task).expand(len(mask), -1, -1)  # computed once for all rows
        vectors = self.dropout(torch.cat([self.model(control), task], dim=1))
        return self.split_layers(vectors, torch.cat([mask, all_real(task)], dim=1))
