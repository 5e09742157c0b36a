"""Summaries of users: how many texts, how many bytes, and which tensors are kept of each."""

from __future__ import annotations

from sqlite3 import Connection
from typing import NamedTuple


class HeldTensors(NamedTuple):
    """Tensors that are kept of a user under a name and a key; ``computed`` ones go when the texts change."""

    name: str
    key: str
    computed: bool
    bytes: int


class UserSummary(NamedTuple):
    """A user's id, number of texts, bytes of texts and tensors together, and what tensors are kept."""

    user: str
    texts: int
    bytes: int
    held: list[HeldTensors]


def summaries(connection: Connection) -> list[UserSummary]:
    """Summary of every user, by id."""
    rows: list[tuple[int, str]] = connection.execute("SELECT number, id FROM users ORDER BY id").fetchall()
    texts = {number: (count, size) for number, count, size in connection.execute(_TEXTS).fetchall()}
    held: dict[int, list[HeldTensors]] = {}
    for number, name, key, computed, size in connection.execute(_TENSORS).fetchall():
        held.setdefault(number, []).append(HeldTensors(name, key, bool(computed), size))
    return [_summary(user, *texts.get(number, (0, 0)), held.get(number, [])) for number, user in rows]


_TEXTS = "SELECT user, COUNT(*), SUM(LENGTH(CAST(text AS BLOB))) FROM texts GROUP BY user"
_TENSORS = "SELECT user, name, key, computed, LENGTH(data) FROM tensors ORDER BY user, name, key"


def _summary(user: str, texts: int, size: int, held: list[HeldTensors]) -> UserSummary:
    return UserSummary(user, texts, size + sum(tensors.bytes for tensors in held), held)
