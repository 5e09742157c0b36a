"""Connections to one SQLite file, shared by threads and processes: snapshots to read, one transaction to write.

The log (WAL) lets readers go on while one writes. A connection serves one thread at a time; idle ones are kept. A
process that forks closes them first: SQLite's locks are of a process, and a child must not believe that it has them.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.users import schema

_PRAGMAS = (
    "secure_delete = ON",  # bytes that are deleted become zeros
    "foreign_keys = ON",
    "synchronous = FULL",  # what was committed outlives a power cut
    "temp_store = MEMORY",  # no word of a user in a temporary file elsewhere
    "trusted_schema = OFF",
)


class Connections:
    """Connections to the store at ``path``; ``wait`` is the seconds to wait for another writer.

    Raises InputError, one line, for whatever SQLite refuses.
    """

    def __init__(self, path: Path, wait: float, create: bool) -> None:
        self.path, self.wait, self.closed = path, wait, False
        self._idle: deque[sqlite3.Connection] = deque()  # its append and pop need no lock
        self._of_thread = threading.local()
        with database_errors(path, wait):
            _require_file(path, create)
            self._idle.append(self._open())
        _OPEN.add(self)

    @property
    def in_transaction(self) -> bool:
        """True where this thread is within ``writing``."""
        return getattr(self._of_thread, "connection", None) is not None

    def owe_erasure(self) -> None:
        """Note, within ``writing``, that this transaction removes users."""
        self._of_thread.owes_erasure = True

    def take_erasure(self) -> bool:
        """True once, where the transaction that has ended in this thread removed users; False within another."""
        if self.in_transaction:
            return False
        owed, self._of_thread.owes_erasure = getattr(self._of_thread, "owes_erasure", False), False
        return owed

    @contextmanager
    def single(self) -> Generator[sqlite3.Connection, None, None]:
        """A connection outside any transaction."""
        if self.closed:
            raise InputError(f"{self.path}: the store is closed")
        with database_errors(self.path, self.wait):
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._open()
            try:
                yield connection
            finally:
                self._give_back(connection)

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection, None, None]:
        """A connection on one snapshot of the store; within ``writing``, on what was written so far."""
        if self.in_transaction:
            with database_errors(self.path, self.wait):
                yield self._of_thread.connection
            return
        with self.single() as connection:
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection, None, None]:
        """A connection whose changes are kept all or none; an inner block that fails takes back its own alone."""
        if self.in_transaction:
            with database_errors(self.path, self.wait), _savepoint(self._of_thread.connection) as connection:
                yield connection
            return
        with self.single() as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._of_thread.connection, self._of_thread.owes_erasure = connection, False
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                self._of_thread.connection = None

    def close(self) -> None:
        """Close idle connections now, and those in use when their threads give them back."""
        self.closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close the connections that no thread uses; later calls open others."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            connection.close()
            raise
        if self.closed:
            connection.close()
        else:
            self._idle.append(connection)

    def _open(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, timeout=self.wait, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            connection.execute(
                "BEGIN"
            )  # all that tells the version is read of one state: another may make the file now
            current = schema.is_current(connection, self.path)
            connection.execute("ROLLBACK")
            self._use_log(connection)
            if not current:
                connection.execute("BEGIN IMMEDIATE")
                if not schema.is_current(connection, self.path):  # another process may have been first
                    schema.migrate(connection, self.path)
                connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """Switch a new file to the log; SQLite does not wait by itself for others that do so too."""
        end = time.monotonic() + self.wait
        while True:
            try:
                if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                    return
                if (mode := connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
                    raise InputError(f"{self.path}: its disk allows no log (WAL, {mode}); give a file on a local disk")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
                time.sleep(0.01)


_OPEN: weakref.WeakSet[Connections] = weakref.WeakSet()


def _close_all_idle() -> None:
    for connections in list(_OPEN):
        connections.close_idle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_all_idle)


@contextmanager
def _savepoint(connection: sqlite3.Connection) -> Generator[sqlite3.Connection, None, None]:
    connection.execute("SAVEPOINT inner")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK TO inner")
        raise
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE inner")


def _require_file(path: Path, create: bool) -> None:
    """Raise InputError unless ``path`` is a file that may be a store; make an empty one, of its owner alone."""
    if path.is_dir():
        raise InputError(f"{path}: a folder; a store of users is one file")
    if create:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise InputError(f"{path}: cannot be made or written ({error.strerror})") from None
    elif not path.exists():
        raise InputError(f"{path}: no such store; mmprefix users add, or UserStore(path, create=True), makes one")


@contextmanager
def database_errors(path: Path, wait: float) -> Generator[None, None, None]:
    """Turn errors of SQLite into InputError."""
    try:
        yield
    except sqlite3.Error as error:
        raise InputError(f"{path}: {_reason(error, wait)}") from error


def _reason(error: sqlite3.Error, wait: float) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    reasons = {
        sqlite3.SQLITE_NOTADB: "no SQLite database, so no store of users",
        sqlite3.SQLITE_READONLY: "the file or its folder is read-only; SQLite keeps its log beside the file",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened; the file and its folder must be readable and writable",
        sqlite3.SQLITE_BUSY: f"another program has it for longer than {wait:g} s; try again",
        sqlite3.SQLITE_CORRUPT: f"damaged ({error}); restore it from a copy",
        sqlite3.SQLITE_FULL: "the disk is full; nothing of this change was kept",
    }
    return reasons.get(code, f"cannot be used ({error})")
