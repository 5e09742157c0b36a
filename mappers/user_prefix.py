"""A learned prefix for each user: embeddings, or keys and values for every layer.

Control prefixes keep a deep prefix an attribute beside that of the task (Clive, Cao, Rei 2022,
https://arxiv.org/abs/2110.08329); here the attribute is the user, and the task's is ``model.prefix``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmprefix.mappers.base import DeepMapper, Sizes, frozen_positions, need_length
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.starts import Start, as_start
from mmprefix.mappers.user_rows import UserRows
from mmprefix.types import DeepPrefix, Features, Prefix


class UserPrefix(UserRows):
    """``length`` embeddings (B P E) of an input's user.

    Args:
        length: positions of the prefix.
        capacity: users, at most.
        std: standard deviation of the numbers before training.
        nobody: share of the rows of a batch whose user is hidden in training, so that strangers have a prefix too.
        start: what every row is before training: a text, or a part of ``mmprefix.mappers.starts``. None: random ones.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        capacity: int = 1000,
        std: float = 0.02,
        nobody: float = 0.1,
        start: str | Start | None = None,
    ) -> None:
        need_length(self, length)
        super().__init__(sizes, length=length, numbers=sizes.width, capacity=capacity, std=std, nobody=nobody)
        self.start, self.origin = start, as_start(start, std)

    @torch.no_grad()
    def begin(self, reader: TextReader) -> None:
        """Let every row be the start."""
        if self.start is not None:
            self.rows.copy_(self.origin.embeds(reader, self.sizes, self.length).flatten().expand_as(self.rows))

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Hashes of users (B 8) → embeddings (B P E) and their mask."""
        return Prefix(*self.of_users(features))


class DeepUserPrefix(UserRows, DeepMapper):
    """``length`` keys and values (L B H P K) of an input's user.

    Args:
        length: positions of the prefix.
        capacity: users, at most.
        std: standard deviation of the numbers before training.
        nobody: share of the rows of a batch whose user is hidden in training, so that strangers have a prefix too.
        start: a text; before training every row is what the decoder has in its cache at the first ``length`` positions
            of it, repeated as needed; or a part of ``mmprefix.mappers.starts``. None: random numbers.
        frozen: first positions that are not trained and that all users share; None: 1 after a text, else 0.
    """

    sink: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 4,
        capacity: int = 1000,
        std: float = 0.1,
        nobody: float = 0.1,
        start: str | Start | None = None,
        frozen: int | None = None,
    ) -> None:
        need_length(self, length)
        origin = as_start(start, std)
        fixed = frozen_positions(self, length, origin.is_text, frozen)
        numbers = 2 * sizes.layers * sizes.heads * sizes.head_width
        own = length - fixed
        super().__init__(sizes, length=own, numbers=numbers, capacity=capacity, std=std, nobody=nobody)
        self.frozen, self.start, self.origin = fixed, start, origin
        if fixed:
            self.register_buffer("sink", torch.randn(fixed, numbers) * std)

    def begin(self, reader: TextReader) -> None:
        """Let every row, and the shared first positions, be the start."""
        if self.start is not None:
            vectors = self.origin.vectors(reader, self.sizes, self.frozen + self.length)
            with torch.no_grad():
                self.rows.copy_(vectors[self.frozen :].flatten().expand_as(self.rows))
                if self.frozen:
                    self.sink.copy_(vectors[: self.frozen])

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Hashes of users (B 8) → keys and values (L B H P K) and their mask."""
        vectors, mask = self.of_users(features)
        if self.frozen:
            vectors = torch.cat([self.sink.expand(len(vectors), -1, -1), vectors], dim=1)
            mask = torch.cat([mask.new_ones(len(mask), self.frozen), mask], dim=1)
        return self.split_layers(vectors, mask)
