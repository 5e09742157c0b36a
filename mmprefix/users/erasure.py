"""Erasure: of users who were removed no byte stays in the file or beside it.

Deleted rows are overwritten with zeros (``secure_delete``), but copies stay: in the log (WAL), in the file until the
log is copied into it, and in gaps of pages whose rows SQLite had moved to others before. So the file is written anew
without them (VACUUM), and the log is copied into it and cut to nothing. Both cost the size of the store, once for all
users of a removal.

A removal counts ``removals`` up in its own transaction; erasure sets ``erased`` to that count when it has ended. One
that was killed between is seen by the difference, and is made up for when the store is next opened.
"""

from __future__ import annotations

import sqlite3
import time

from mmprefix.errors import InputError
from mmprefix.users.connections import Connections


class PendingErasureError(InputError):
    """Users are removed and no call shows them, but bytes of them await the end of those who read or write."""


def note_removal(connection: sqlite3.Connection) -> None:
    """Count a removal, in its transaction."""
    connection.execute("UPDATE erasure SET removals = removals + 1")


def is_pending(connection: sqlite3.Connection) -> bool:
    """True where a removal was not followed by its erasure."""
    return bool(connection.execute("SELECT removals > erased FROM erasure").fetchone()[0])


def erase(connections: Connections, wait: float) -> None:
    """Write the store anew and empty its log; wait so many seconds for those who read or write.

    Raises PendingErasureError where they do not end: a reader that holds an older snapshot needs the old pages.
    """
    with connections.single() as connection:
        removals: int = connection.execute("SELECT removals FROM erasure").fetchone()[0]
        connection.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
        try:
            connection.execute("VACUUM")
            if not _empty_log(connection, wait):
                raise PendingErasureError(_message(connections, f"a reader or writer held it for {wait:g} s"))
            connection.execute("UPDATE erasure SET erased = MAX(erased, ?)", (removals,))
        except sqlite3.OperationalError as error:
            raise PendingErasureError(_message(connections, str(error))) from error
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(connections.wait * 1000)}")


def _empty_log(connection: sqlite3.Connection, wait: float) -> bool:
    """Copy the log into the file and cut it to nothing; True where that was done.

    SQLite waits for readers and writers by itself, but not for another connection that does the same just now.
    """
    end = time.monotonic() + wait
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _message(connections: Connections, reason: str) -> str:
    return (
        f"{connections.path}: what was removed is shown to nobody, but bytes of it are still in the file ({reason}); "
        "they go when the store is next opened, or by the next removal"
    )
