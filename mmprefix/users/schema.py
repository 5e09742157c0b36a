"""Tables of a store of users, and the steps that bring a file of an earlier version to the present one.

``PRAGMA user_version`` is the version of a file, ``PRAGMA application_id`` tells it from other programs' databases.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.users.checks import checked_texts

APPLICATION = 0x6D6D7075  # "mmpu"
_TABLES = (
    "CREATE TABLE users (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE)",
    """CREATE TABLE texts (
        user INTEGER NOT NULL REFERENCES users ON DELETE CASCADE, position INTEGER NOT NULL, text TEXT NOT NULL,
        PRIMARY KEY (user, position)) WITHOUT ROWID""",
    """CREATE TABLE tensors (
        user INTEGER NOT NULL REFERENCES users ON DELETE CASCADE, name TEXT NOT NULL, key TEXT NOT NULL,
        computed INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (user, name, key)) WITHOUT ROWID""",
    "CREATE TABLE erasure (removals INTEGER NOT NULL, erased INTEGER NOT NULL)",
)


def from_0_to_1(connection: sqlite3.Connection) -> None:
    """Make the tables; users of version 0, one table ``users (id, history)`` with a JSON list each, move into them.

    Pages of the old table count as a removal, so that they are erased.
    """
    old = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table'").fetchone() is not None
    rows: list[tuple[str, str]] = connection.execute("SELECT id, history FROM users").fetchall() if old else []
    if old:
        connection.execute("DROP TABLE users")
    for table in _TABLES:
        connection.execute(table)
    connection.execute("INSERT INTO erasure VALUES (?, 0)", (int(old),))
    for user, history in rows:
        number = connection.execute("INSERT INTO users (id) VALUES (?)", (user,)).lastrowid
        texts = [(number, position, text) for position, text in enumerate(checked_texts(json.loads(history)))]
        connection.executemany("INSERT INTO texts VALUES (?, ?, ?)", texts)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (from_0_to_1,)
VERSION = len(MIGRATIONS)


def is_current(connection: sqlite3.Connection, path: Path) -> bool:
    """True for a store of the present version, False for an earlier one or an empty file.

    Raises InputError for the database of another program and for a store of a later version.
    """
    application, version = (_number(connection, name) for name in ("application_id", "user_version"))
    if application != APPLICATION and not (application == version == 0 and _columns(connection) in _OF_VERSION_0):
        raise InputError(f"{path}: an SQLite database, but no store of users; give another file")
    if version > VERSION:
        raise InputError(f"{path}: a store of version {version}; this mmprefix reads up to {VERSION}: update mmprefix")
    return version == VERSION


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a store to the present version, within the caller's transaction: all steps or none.

    Raises InputError where rows are not as their version has them.
    """
    for version in range(_number(connection, "user_version"), VERSION):
        try:
            MIGRATIONS[version](connection)
        except ValueError as error:
            raise InputError(f"{path}: cannot be brought from version {version} to {version + 1} ({error})") from error
        connection.execute(f"PRAGMA user_version = {version + 1}")


_OF_VERSION_0: tuple[list[tuple[str, str]], ...] = ([], [("users", "id"), ("users", "history")])


def _columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Table and name of every column."""
    query = "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'"
    return connection.execute(query).fetchall()


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
