"""Store of users in one SQLite file: the texts of each, and tensors that were computed of them or trained for them.

with UserStore("users.db", create=True) as store:
    store.add("u07", ["a dog runs", "my dog again"])
    texts = store.history("u07")
    store.put("u07", "context", {"frames": frames}, key=digest, computed_from=texts)
    store.tensors("u07", "context", key=digest)  # None once the texts have changed, or for another model
    store.remove("u07")
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any, Self

from mmprefix.errors import InputError, require_text
from mmprefix.users.checks import checked_texts, require_user
from mmprefix.users.connections import Connections
from mmprefix.users.erasure import PendingErasureError, erase, is_pending, note_removal
from mmprefix.users.summary import UserSummary, summaries
from mmprefix.users.tensor_bytes import from_bytes, shapes, to_bytes

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


class UnknownUserError(InputError):
    """No such user: never added, or removed a moment ago."""


class UserStore:
    """Users in the file at ``path``; threads and processes may share it: many read while one writes.

    Every call is one transaction: it is kept whole or not at all, whatever is killed when. Ids are compared character
    by character. The file belongs on a local disk, and is readable for its owner alone when it is made.

    Args:
        path: the file; ``mmprefix users`` reads and writes it too.
        create: make the file where there is none.
        wait: seconds to wait for another writer, and for readers when a user is removed.

    Raises InputError for a file that is no store, of a later version, or cannot be written; so do all calls.
    """

    def __init__(self, path: str | Path, *, create: bool = False, wait: float = 30.0) -> None:
        self.path, self.wait = Path(path), wait
        self._connections = Connections(self.path, wait, create)
        self._owes_erasure = False
        with self._connections.reading() as connection:
            pending = is_pending(connection)
        if pending:  # the process that removed a user was killed, or readers were in its way
            self._erase_if_possible(min(wait, 1.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; calls that other threads are in still end, later ones raise InputError."""
        if self._owes_erasure and not self._connections.closed:
            self._erase_if_possible(0.0)
        self._connections.close()

    # --------------------------------------------------------------------------------------------------------- users

    def users(self) -> list[UserSummary]:
        """Summary of every user, by id."""
        with self._connections.reading() as connection:
            return summaries(connection)

    def __contains__(self, user: str) -> bool:
        require_user(user)
        with self._connections.reading() as connection:
            return _number(connection, user) is not None

    def __len__(self) -> int:
        with self._connections.reading() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM users").fetchone()[0])

    def history(self, user: str) -> list[str]:
        """Texts of ``user``, in order. Raises UnknownUserError, an InputError, where there is no such user."""
        with self._connections.reading() as connection:
            return _history(connection, self._existing(connection, user))

    def export(self, user: str) -> dict[str, Any]:
        """All that is held of ``user``, as JSON takes it; tensors are safetensors files in base64."""
        with self._connections.reading() as connection:
            number = self._existing(connection, user)
            rows = connection.execute("SELECT name, key, computed, data FROM tensors WHERE user = ?", (number,))
            tensors = [
                {
                    "name": name,
                    "key": key,
                    "computed": bool(computed),
                    "shapes": shapes(data),
                    "safetensors_base64": base64.b64encode(data).decode(),
                }
                for name, key, computed, data in rows.fetchall()
            ]
            return {"user": user, "history": _history(connection, number), "tensors": tensors}

    def add(self, user: str, history: Iterable[str] = ()) -> None:
        """Add a user with its texts, of which there may be none. Raises InputError for one that is there already."""
        self.add_many({user: history})

    def add_many(self, histories: Mapping[str, Iterable[str]]) -> None:
        """Add users with their texts, all or none."""
        checked = {user: checked_texts(texts) for user, texts in histories.items()}
        for user in checked:
            require_user(user)
        with self._connections.writing() as connection:
            for user, texts in checked.items():
                if _number(connection, user) is not None:
                    raise InputError(f"{self.path}: user {user!r} is there already; update, replace or append instead")
                number = connection.execute("INSERT INTO users (id) VALUES (?)", (user,)).lastrowid
                _write_texts(connection, number, texts)

    def update(self, user: str, texts: Iterable[str], *, append: bool = False, drop_trained: bool = False) -> None:
        """Replace the texts of ``user`` by ``texts``, or put them behind those that are there (``append``).

        Tensors that were computed from the texts before are dropped; trained ones with ``drop_trained`` alone. Bytes
        of replaced texts may stay in the file until the next removal or ``erase``.
        """
        checked = checked_texts(texts)
        with self._connections.writing() as connection:
            number = self._existing(connection, user)
            if not append:
                connection.execute("DELETE FROM texts WHERE user = ?", (number,))
            connection.execute("DELETE FROM tensors WHERE user = ? AND (computed OR ?)", (number, drop_trained))
            _write_texts(connection, number, checked)

    def remove(self, *users: str) -> None:
        """Remove users, all or none, and erase every byte of them from the file and its log.

        The file is written anew, which takes time and memory by its size: remove many in one call or ``transaction``.
        Raises InputError for a user who is not there, and PendingErasureError, also an InputError, where the users are
        removed but a reader of another program held an older state for longer than ``wait``.
        """
        if not users:
            return
        with self.transaction(), self._connections.writing() as connection:
            numbers = [(self._existing(connection, user),) for user in users]
            connection.executemany("DELETE FROM users WHERE number = ?", numbers)
            note_removal(connection)
            self._connections.owe_erasure()

    # ------------------------------------------------------------------------------------------------------- tensors

    def put(
        self,
        user: str,
        name: str,
        tensors: Mapping[str, Tensor],
        *,
        key: str = "",
        computed_from: Iterable[str] | None = None,
    ) -> bool:
        """Keep ``tensors`` of ``user`` in the place of those of the same name and key.

        Args:
            user: who they are of.
            name: what they are, such as ``context`` or ``prefix``.
            tensors: by name, of any shape and dtype.
            key: what they belong to, such as a model's digest; other keys of the same name stay.
            computed_from: the texts that they were computed of: they go when the texts change, and are not kept, which
                False tells, where the user has other texts by now or is removed. Without it they are trained ones,
                which stay; a user who is not there raises UnknownUserError.
        """
        _require_names(user, name, key)
        data = to_bytes(tensors)
        texts = None if computed_from is None else checked_texts(computed_from)
        with self._connections.writing() as connection:
            if texts is None:
                number = self._existing(connection, user)
            else:
                number = _number(connection, user)
                if number is None or _history(connection, number) != texts:
                    return False
            row = (number, name, key, texts is not None, data)
            connection.execute("INSERT OR REPLACE INTO tensors VALUES (?, ?, ?, ?, ?)", row)
            return True

    def tensors(self, user: str, name: str, *, key: str = "") -> dict[str, Tensor] | None:
        """Tensors of ``user`` under ``name`` and ``key``, on the CPU; None where none are kept, or no such user is."""
        return self.tensors_of([user], name, key=key).get(user)

    def tensors_of(self, users: Iterable[str], name: str, *, key: str = "") -> dict[str, dict[str, Tensor] | None]:
        """``tensors`` of many users, all of one state of the store; a user who is not there is left out.

        Each is read once, however often it is named.
        """
        distinct = dict.fromkeys(users)
        for user in distinct:
            _require_names(user, name, key)
        held: dict[str, dict[str, Tensor] | None] = {}
        with self._connections.reading() as connection:
            for user in distinct:  # one at a time: no bytes stay beside the tensors made of them
                row = connection.execute(_TENSORS_OF, (name, key, user)).fetchone()
                if row is not None:
                    held[user] = None if row[0] is None else self._tensors(row[0], user, name)
        return held

    def drop(self, user: str, name: str, *, key: str | None = None) -> int:
        """Drop tensors of ``user`` under ``name`` and ``key``, or all keys; the number of those that were kept."""
        _require_names(user, name, key or "")
        query = "DELETE FROM tensors WHERE user = ? AND name = ? AND (key = ? OR ? IS NULL)"
        with self._connections.writing() as connection:
            return connection.execute(query, (self._existing(connection, user), name, key, key)).rowcount

    # ------------------------------------------------------------------------------------------------------ the file

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """Keep all changes of this thread within the block, or none: thousands of ``put`` at the price of one.

        Other writers wait for its end. Removals within it are erased at its end.
        """
        with self._connections.writing():
            yield
        if self._connections.take_erasure():
            self.erase()

    def erase(self) -> None:
        """Write the file anew, without any byte of what was removed, replaced or dropped; ``remove`` does so itself.

        Within ``transaction`` it is done at the end. Raises PendingErasureError where a reader of another program holds
        an older state for longer than ``wait``.
        """
        if self._connections.in_transaction:
            self._connections.owe_erasure()
            return
        self._owes_erasure = True
        erase(self._connections, self.wait)
        self._owes_erasure = False

    def _erase_if_possible(self, wait: float) -> None:
        try:
            erase(self._connections, wait)
        except PendingErasureError as error:
            log.warning("%s", error)

    def _tensors(self, data: bytes, user: str, name: str) -> dict[str, Tensor]:
        try:
            return from_bytes(data)
        except InputError as error:
            raise InputError(f"{self.path}: user {user!r}, {name!r}: {error}") from error

    def _existing(self, connection: Connection, user: str) -> int:
        require_user(user)
        if (number := _number(connection, user)) is None:
            raise UnknownUserError(
                f"{self.path}: no user {user!r}; mmprefix users list {self.path} shows those there are"
            )
        return number


_TENSORS_OF = (
    "SELECT data FROM users LEFT JOIN tensors ON tensors.user = users.number AND name = ? AND key = ? "
    "WHERE users.id = ?"
)


def _require_names(user: str, name: str, key: str) -> None:
    require_user(user)
    require_text("name", name)
    require_text("key", key)


def _number(connection: Connection, user: str) -> int | None:
    row = connection.execute("SELECT number FROM users WHERE id = ?", (user,)).fetchone()
    return None if row is None else row[0]


def _history(connection: Connection, number: int) -> list[str]:
    query = "SELECT text FROM texts WHERE user = ? ORDER BY position"
    return [text for (text,) in connection.execute(query, (number,)).fetchall()]


def _write_texts(connection: Connection, number: int | None, texts: list[str]) -> None:
    """Write texts behind those that the user has."""
    query = "SELECT IFNULL(MAX(position) + 1, 0) FROM texts WHERE user = ?"
    first: int = connection.execute(query, (number,)).fetchone()[0]
    rows = [(number, position, text) for position, text in enumerate(texts, start=first)]
    connection.executemany("INSERT INTO texts VALUES (?, ?, ?)", rows)
