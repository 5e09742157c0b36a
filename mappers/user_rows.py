"""A row of trained numbers for each user, found by the hash of the user's id: the base of per-user prefixes."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.observer import Observer
from mmprefix.types import Features, to_list

NOBODY = 0
"""Row of a user who is not known, and the hash of the id of nobody."""


class UserRows(Observer):
    """Base of mappers with a row of ``length`` x ``numbers`` numbers a user, (1 + capacity, P*n); nobody's comes first.

    The rows are given to the users of the training data before the first step, and to others by ``add``. They are read
    behind ``mmprefix.encoders.user_id.UserId``; train them with ``mmprefix.training.RowAdam``, which leaves users alone
    who are not in a batch. Frames (B P n) beside the hashes are a user's numbers themselves, of any P, and are taken
    instead of a row: that is how the users of a store come (``mmprefix.inference.user_prefixes``).

    Args:
        length: positions of a user's prefix.
        numbers: of a position.
        capacity: users, at most. A saved model has as many rows as it has users.
        std: standard deviation of the numbers before training.
        nobody: share of the rows of a batch whose user is hidden in training, so that nobody's row is trained.
    """

    observes_again: ClassVar[bool] = True
    keys: Tensor
    rows: nn.Parameter

    def __init__(self, sizes: Sizes, *, length: int, numbers: int, capacity: int, std: float, nobody: float) -> None:
        super().__init__(sizes)
        name = type(self).__name__
        if sizes.summary != 8 or sizes.frames:
            raise InputError(f"{name}: reads the id of a user; take the encoder mmprefix.encoders.user_id.UserId")
        if capacity < 1:
            raise InputError(f"{name}.capacity {capacity}: give a number of users from 1 on")
        if not 0 <= nobody < 1:
            raise InputError(f"{name}.nobody {nobody}: give a share from 0 on, below 1")
        self.length, self.nobody = length, nobody
        self.register_buffer("keys", torch.full((1 + capacity,), -1, dtype=torch.long))  # -1: a free row
        self.rows = nn.Parameter(torch.randn(1 + capacity, length * numbers) * std)

    def recipe_args(self) -> dict[str, Any]:
        """Arguments, with the rows that there are now."""
        return super().recipe_args() | {"capacity": len(self.keys) - 1}

    @property
    def reads_frames(self) -> bool:
        """Always False: its encoder has none."""
        return False

    # ---------------------------------- users of the training

    @property
    def known(self) -> bool:
        """True once a user has a row."""
        return bool((self.keys >= 0).any())

    def observe(self, features: Features) -> None:
        """Give a row to each user that has none."""
        for key in to_list(_key(features.pooled)):
            if key != NOBODY:
                self._give(key)

    def observed(self) -> str:
        """How many users have a row."""
        return f"rows for {self.users} users of at most {len(self.keys) - 1}"

    @property
    def users(self) -> int:
        """Users that have a row."""
        return int((self.keys >= 0).sum())

    # ---------------------------------- rows of the table

    def _give(self, key: int) -> int:
        """Row of the user with this hash, a free one for a new user."""
        if key == NOBODY:
            raise InputError(f"{type(self).__name__}: the id '-' is that of nobody; give the user another")
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

    def has(self, hashed: Tensor) -> bool:
        """True where the user with the ``hashed`` id (8,) has a row."""
        return int(self.index(hashed[None])[0]) != NOBODY

    @torch.no_grad()
    def add(self, hashed: Tensor, numbers: Tensor | None = None) -> None:
        """Give the user with the ``hashed`` id (8,) a row with these ``numbers`` (P*n,), or with those of nobody."""
        self.rows[self._give(int(_key(hashed)))] = self.rows[NOBODY] if numbers is None else numbers

    def numbers_of(self, hashed: Tensor) -> Tensor:
        """Copy of a user's numbers (P n); InputError where the user has no row."""
        return self.rows[self._row(hashed)].detach().clone().view(self.length, -1)

    @torch.no_grad()
    def remove(self, hashed: Tensor) -> Tensor:
        """Take the row of a user away, and return its numbers (P*n,); InputError where there is none."""
        row = self._row(hashed)
        numbers = self.rows[row].clone()
        self.keys[row] = -1
        self.rows[row] = self.rows[NOBODY]
        return numbers

    def _row(self, hashed: Tensor) -> int:
        row = int(self.index(hashed[None])[0])
        if row == NOBODY:
            raise InputError(f"{type(self).__name__}: this user has no row")
        return row

    def index(self, hashed: Tensor) -> Tensor:
        """Rows (B) of the users with these ``hashed`` ids (B 8); nobody's for those who have none."""
        keys = _key(hashed)
        ordered, order = self.keys.sort()
        place = torch.searchsorted(ordered, keys).clamp(max=len(ordered) - 1)
        return torch.where(ordered[place] == keys, order[place], torch.full_like(keys, NOBODY))

    # ---------------------------------- tables of other sizes

    @torch.no_grad()
    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` users, in new tensors: nobody first, then those that there are, then free rows.

        An optimizer does not follow; InputError where more users have rows.
        """
        self.keys, rows = self.fitted(self.keys, self.rows, capacity)
        self.rows = nn.Parameter(rows, requires_grad=self.rows.requires_grad)

    def fitted(self, keys: Tensor, rows: Tensor, capacity: int | None = None) -> tuple[Tensor, Tensor]:
        """``keys`` (1 + N), ``rows`` (1 + N, P*n) of a table in one for ``capacity`` users, by default this one's.

        A table of the same size stays as it is. Raises InputError where the users do not fit.
        """
        capacity = len(self.keys) - 1 if capacity is None else capacity
        if len(keys) == 1 + capacity:
            return keys, rows
        taken = (keys >= 0).nonzero()[:, 0]
        if len(taken) > capacity:
            name = type(self).__name__
            raise InputError(f"{name}.capacity {capacity}: {len(taken)} users have rows; give room for all of them")
        fresh = rows[:1].expand(1 + capacity, -1).clone()  # a free row begins as nobody's
        fresh[1 : 1 + len(taken)] = rows[taken]
        named = keys.new_full((1 + capacity,), -1)
        named[1 : 1 + len(taken)] = keys[taken]
        return named, fresh

    @torch.no_grad()
    def merged(self) -> Self:
        """Table of the users that there are, without free rows."""
        capacity = max(1, self.users)
        if capacity == len(self.keys) - 1:
            return self
        table = copy.copy(self)
        table._parameters, table._buffers = dict(self._parameters), dict(self._buffers)  # a shallow copy shares them
        table.resize(capacity)
        return table

    # ---------------------------------- numbers of a batch

    def of_users(self, features: Features) -> tuple[Tensor, Tensor]:
        """Numbers (B P n) of the users of B inputs, and their mask (B P): those beside the hashes, else of the rows."""
        beside = features.mask
        if beside.shape[1] and bool(beside.any(1).all()):  # no row is looked up, and nothing copied
            return features.frames.to(self.rows.dtype), beside
        index = self.index(features.pooled)
        if self.training and self.nobody:
            index = index.masked_fill(torch.rand(len(index), device=index.device) < self.nobody, NOBODY)
        rows = self.rows[index].view(len(index), self.length, -1)
        own = rows.new_ones(rows.shape[:2], dtype=torch.bool)
        if not beside.shape[1]:
            return rows, own
        longest = max(self.length, beside.shape[1])
        come, frames = beside.any(1), features.frames.to(rows.dtype)
        rows, frames = (F.pad(values, (0, 0, 0, longest - values.shape[1])) for values in (rows, frames))
        own, beside = (F.pad(mask, (0, longest - mask.shape[1])) for mask in (own, beside))
        return torch.where(come[:, None, None], frames, rows), torch.where(come[:, None], beside, own)


def _key(hashed: Tensor) -> Tensor:
    """Hash of ids (... 8) as one number each, from 0 on: seven bytes and a half of it."""
    parts = hashed.round().long()
    key = parts[..., 0] & 0x7F
    for byte in range(1, parts.shape[-1]):
        key = key * 256 + parts[..., byte]
    return key
