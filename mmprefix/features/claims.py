"""Division of work between processes that fill one feature store at once.

Each process has a file that names what it has taken, and holds a lock on it while it lives. The system drops the lock
when the process ends, however it ends; what it had taken is then free again, and its unfinished files are removed by
the next process. A lock says nothing of a process on another machine, where a network file system may keep locks to
each machine, or keep those of a machine that has failed: such a process lives while its file is younger than ``LEASE``,
by the clock of the file system, and touches it with each batch. Claims only save work: a process that is wrongly taken
for dead loses nothing, for rows are published in the store under one lock, each once (``mmprefix.features.filling``).
"""

from __future__ import annotations

import glob
import os
import secrets
import socket
import uuid
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mmprefix.atomic import disk_errors_as_input_errors, remove_left_overs
from mmprefix.errors import InputError
from mmprefix.interrupt import hold_stop_signals

LEASE = 600.0  # seconds


class Claims:
    """Pieces of work, each named by a line of text, that this process has taken among those of ``folder``.

    Raises InputError where the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = folder, folder / "claims"
        with disk_errors_as_input_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.machine = machine()
        self.name = f"{socket.gethostname()[:40]}-{self.machine}-{os.getpid()}-{secrets.token_hex(8)}"
        self.taken: set[str] = set()
        self._names = 0
        self._all, self._own = self._lock(".lock"), self._lock(f"{self.name}.lock")
        with self.alone():
            try:
                self._own.acquire()
                self._write()
                self.claimed()  # so that the leftovers of killed processes are removed
                remove_left_overs(folder)
            except BaseException:
                self._forget(self.name)
                raise

    @contextmanager
    def alone(self) -> Generator[None, None, None]:
        """Keep the other processes from taking, publishing and giving back; stop signals wait for the end."""
        with hold_stop_signals():
            try:
                self._all.acquire()
            except (OSError, NotImplementedError) as error:
                raise InputError(
                    f"{self.folder}: its file system refuses a lock ({error}), and processes share the work by locks; "
                    "give a folder on another disk"
                ) from error
            try:
                yield
            finally:
                self._all.release()

    def take(self, work: str, done: Callable[[], bool]) -> bool:
        """Take ``work``; returns False where a living process has it, or where it is ``done``."""
        with self.alone():
            if work in self.taken or work in self.claimed() or done():
                return False
            self.taken.add(work)
            self._write()
            return True

    def any_free(self, works: Collection[str]) -> bool:
        """Return True where some of ``works`` can be taken."""
        with self.alone():
            return not self.claimed().issuperset(works)

    def release(self, done: Iterable[str]) -> None:
        """Give back work that is done, once its results are in the store."""
        with self.alone():
            self.taken.difference_update(done)
            self._write()

    def new_name(self) -> str:
        """Name for a file of this process; no process has another with it."""
        self._names += 1
        return f"{self.name}-{self._names - 1:05}"

    def renew(self) -> None:
        """Tell processes on other machines that this one lives."""
        try:
            os.utime(self._file)
        except FileNotFoundError:  # one of them took it for dead
            with self.alone():
                self._write()

    def close(self) -> None:
        """Give everything back, and remove this process's files and those of processes that were killed meanwhile."""
        with self.alone():
            with suppress(OSError, InputError):
                self.claimed()
            self._own.release()
            self._forget(self.name)

    def claimed(self) -> set[str]:
        """Work that other living processes have taken; the leftovers of the others are removed."""
        works: set[str] = set()
        for name in self._others():
            if self._lives(name):
                with suppress(OSError):
                    works.update((self.folder / f"{name}.txt").read_text("utf-8", errors="replace").split("\n"))
            else:
                self._forget(name)
        return works - {""}

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.name}.txt"

    def _others(self) -> Iterator[str]:
        names = {file.stem for end in ("txt", "lock") for file in self.folder.glob(f"[!.]*.{end}")}
        return iter(sorted(names - {self.name}))

    def _lives(self, name: str) -> bool:
        if name.split("-")[-3:-2] != [self.machine]:
            self.renew()
            return self._age(name) < LEASE
        lock = self._lock(f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _age(self, name: str) -> float:
        times = [0.0]
        for end in ("txt", "lock"):
            with suppress(FileNotFoundError):
                times.append((self.folder / f"{name}.{end}").stat().st_mtime)
        return self._file.stat().st_mtime - max(times)

    def _forget(self, name: str) -> None:
        left = self.store.glob(f".{glob.escape(name)}-*")
        for file in [*left, *(self.folder / end for end in (f".{name}.new", f"{name}.txt", f"{name}.lock"))]:
            with suppress(OSError):  # another user's, or gone
                file.unlink()

    def _write(self) -> None:
        fresh = self.folder / f".{self.name}.new"
        with disk_errors_as_input_errors(self._file):
            fresh.write_text("\n".join(sorted(self.taken)), encoding="utf-8")
            fresh.replace(self._file)

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.folder / name, fallback_to_soft=False)


def remove_dead_claims(folder: Path) -> None:
    """Remove what killed processes have left beside a store that is full, where its disk can be written."""
    if any((folder / "claims").glob("[!.]*")):
        with suppress(OSError, InputError), claiming(folder):
            pass  # the first and last thing that a process does with its claims is to remove those of dead ones


def machine() -> str:
    """Eight hex digits that all processes under one running kernel share, in containers too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return f"{uuid.getnode():012x}"[-8:]


@contextmanager
def claiming(folder: Path) -> Generator[Claims, None, None]:
    """Claims of this process, given back at the end."""
    claims = Claims(folder)
    try:
        yield claims
    finally:
        claims.close()
