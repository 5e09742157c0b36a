"""Division of work between processes that fill one feature store at once: no piece is done twice, none is lost.

Each process has a file that names what it has taken, and holds a lock on it while it lives. The system drops the lock
when the process ends, however it ends; what it had taken is then free again.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Claims:
    """Pieces of work, each named by a line of text, that this process has taken among those of ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "claims"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.taken: set[str] = set()
        self._all = FileLock(self.folder / ".lock")
        self._own = FileLock(self.folder / f"{self.name}.lock")
        self._own.acquire()
        self._write()

    def take(self, work: str, done: Callable[[], bool]) -> bool:
        """Take ``work``; returns False where a living process has it, or where it is ``done``."""
        with self._all:
            if work in self.taken or any(work in theirs for theirs in self._others()) or done():
                return False
            self.taken.add(work)
            self._write()
            return True

    def release(self, done: Iterable[str]) -> None:
        """Give back work that is done, once its results are in the store."""
        self.taken.difference_update(done)
        self._write()

    def close(self) -> None:
        """Give everything back and remove this process's files."""
        with self._all:
            self._own.release()
            self._forget(self.name)

    def _others(self) -> Iterator[set[str]]:
        for file in self.folder.glob("*.txt"):
            if file.stem != self.name and self._lives(file.stem):
                yield set(file.read_text(encoding="utf-8").split("\n"))

    def _lives(self, name: str) -> bool:
        lock = FileLock(self.folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        self._forget(name)
        return False

    def _forget(self, name: str) -> None:
        for end in ("txt", "lock"):
            (self.folder / f"{name}.{end}").unlink(missing_ok=True)

    def _write(self) -> None:
        fresh = self.folder / f".{self.name}.new"
        fresh.write_text("\n".join(sorted(self.taken)), encoding="utf-8")
        fresh.replace(self.folder / f"{self.name}.txt")


@contextmanager
def claiming(folder: Path) -> Iterator[Claims]:
    """Claims of this process, given back at the end."""
    claims = Claims(folder)
    try:
        yield claims
    finally:
        claims.close()
