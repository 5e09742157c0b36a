"""A learned prefix for each user: embeddings, or keys and values for every layer.

Control prefixes keep a deep prefix an attribute beside that of the task (Clive, Cao, Rei 2022,
https://arxiv.org/abs/2110.08329); here the attribute is the user, and the task's is ``model.prefix``.
"""

from __future__ import annotations

from mmprefix.mappers.base import DeepMapper, Sizes, need_length
from mmprefix.mappers.user_rows import UserRows
from mmprefix.types import DeepPrefix, Features, Prefix, all_real


class UserPrefix(UserRows):
    """``length`` embeddings (B P E) of an input's user.

    Args:
        length: positions of the prefix.
        capacity: users, at most.
        std: standard deviation of the numbers before training.
        nobody: share of the rows of a batch whose user is hidden in training, so that strangers have a prefix too.
    """

    def __init__(
        self, sizes: Sizes, *, length: int = 10, capacity: int = 1000, std: float = 0.02, nobody: float = 0.1
    ) -> None:
        super().__init__(sizes, numbers=length * sizes.width, capacity=capacity, std=std, nobody=nobody)
        need_length(self, length)
        self.length = length

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Hashes of users (B 8) → embeddings (B P E), all real."""
        embeds = self.of_users(features).view(-1, self.length, self.sizes.width)
        return Prefix(embeds, all_real(embeds))


class DeepUserPrefix(UserRows, DeepMapper):
    """``length`` keys and values (L B H P K) of an input's user.

    Args:
        length: positions of the prefix.
        capacity: users, at most.
        std: standard deviation of the numbers before training.
        nobody: share of the rows of a batch whose user is hidden in training, so that strangers have a prefix too.
    """

    def __init__(
        self, sizes: Sizes, *, length: int = 4, capacity: int = 1000, std: float = 0.1, nobody: float = 0.1
    ) -> None:
        super().__init__(
            sizes,
            numbers=length * 2 * sizes.layers * sizes.heads * sizes.head_width,
            capacity=capacity,
            std=std,
            nobody=nobody,
        )
        need_length(self, length)
        self.length = length

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Hashes of users (B 8) → keys and values (L B H P K), all real."""
        vectors = self.of_users(features).view(len(features.pooled), self.length, -1)
        return self.split_layers(vectors, all_real(vectors))
