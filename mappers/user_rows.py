"""A row of trained numbers for each user, found by the hash of the user's id: the base of per-user prefixes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.observer import Observer
from mmprefix.types import Features, to_list

NOBODY = 0
"""Row of a user who is not known."""


class UserRows(Observer):
    """Base of mappers with a row of ``numbers`` numbers a user, (1 + capacity, numbers); the first one is nobody's.

    The rows are given to the users of the training data before the first step, and to others by ``add``. They are read
    behind ``mmprefix.encoders.user_id.UserId``; train them with ``mmprefix.training.RowAdam``, which leaves users alone
    who are not in a batch.

    Args:
        numbers: of a user.
        capacity: users, at most.
        std: standard deviation of the numbers before training.
        nobody: share of the rows of a batch whose user is hidden in training, so that nobody's row is trained.
    """

    keys: Tensor
    rows: nn.Parameter

    def __init__(self, sizes: Sizes, *, numbers: int, capacity: int, std: float, nobody: float) -> None:
        super().__init__(sizes)
        name = type(self).__name__
        if sizes.summary != 8 or sizes.frames:
            raise InputError(f"{name}: reads the id of a user; take the encoder mmprefix.encoders.user_id.UserId")
        if capacity < 1:
            raise InputError(f"{name}.capacity {capacity}: give a number of users from 1 on")
        if not 0 <= nobody < 1:
            raise InputError(f"{name}.nobody {nobody}: give a share from 0 on, below 1")
        self.nobody = nobody
        self.register_buffer("keys", torch.full((1 + capacity,), -1, dtype=torch.long))  # -1: a free row
        self.rows = nn.Parameter(torch.randn(1 + capacity, numbers) * std)

    @property
    def reads_frames(self) -> bool:
        """Always False."""
        return False

    @property
    def known(self) -> bool:
        """True once a user has a row."""
        return bool((self.keys >= 0).any())

    def observe(self, features: Features) -> None:
        """Give a row to each user that has none."""
        for key in to_list(_key(features.pooled)):
            self._give(key)

    def observed(self) -> str:
        """How many users have a row."""
        return f"rows for {int((self.keys >= 0).sum())} users of at most {len(self.keys) - 1}"

    def _give(self, key: int) -> int:
        """Row of the user with this hash, a free one for a new user."""
        taken = (self.keys == key).nonzero()
        if len(taken):
            return int(taken[0])
        free = (self.keys[1:] < 0).nonzero()
        if not len(free):
            name = type(self).__name__
            raise InputError(f"{name}.capacity {len(self.keys) - 1}: all rows are taken; remove users, or raise it")
        row = int(free[0]) + 1
        self.keys[row] = key
        return row

    @torch.no_grad()
    def add(self, hashed: Tensor, numbers: Tensor | None = None) -> None:
        """Give the user with the ``hashed`` id (8,) a row with these ``numbers`` (n,), or with those of nobody."""
        self.rows[self._give(int(_key(hashed)))] = self.rows[NOBODY] if numbers is None else numbers

    @torch.no_grad()
    def remove(self, hashed: Tensor) -> Tensor:
        """Take the row of a user away, and return its numbers (n,); InputError where there is none."""
        row = int(self.index(hashed[None])[0])
        if row == NOBODY:
            raise InputError(f"{type(self).__name__}: this user has no row")
        numbers = self.rows[row].clone()
        self.rows[row], self.keys[row] = 0, -1
        return numbers

    def index(self, hashed: Tensor) -> Tensor:
        """Rows (B) of the users with these ``hashed`` ids (B 8); nobody's for those who have none."""
        keys = _key(hashed)
        ordered, order = self.keys.sort()
        place = torch.searchsorted(ordered, keys).clamp(max=len(ordered) - 1)
        return torch.where(ordered[place] == keys, order[place], torch.full_like(keys, NOBODY))

    def of_users(self, features: Features) -> Tensor:
        """Numbers (B n) of the users of B inputs."""
        index = self.index(features.pooled)
        if self.training and self.nobody:
            index = index.masked_fill(torch.rand(len(index), device=index.device) < self.nobody, NOBODY)
        return self.rows[index]


def _key(hashed: Tensor) -> Tensor:
    """Hash of ids (... 8) as one number each, from 0 on: seven bytes and a half of it."""
    parts = hashed.round().long()
    key = parts[..., 0] & 0x7F
    for byte in range(1, parts.shape[-1]):
        key = key * 256 + parts[..., byte]
    return key
