"""A change that is killed at any point, as ``kill -9`` does, is kept whole or not at all, and the store opens."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from mmprefix.users import UserStore, connections
from tiny.user_traces import random_history, random_text, traces

POINTS = 12
PACKAGE = str(Path(connections.__file__).parent)
DRAW = random.Random(7)
USERS = {random_text(DRAW, 20): [random_text(DRAW, 800), *random_history(DRAW)] for _ in range(12)}
NEW = {random_text(DRAW, 20): random_history(DRAW) for _ in range(3)}
FIRST, SECOND, THIRD, *_ = USERS
TEXTS = [random_text(DRAW, 5000), random_text(DRAW, 30)]
PREFIX = {"embeds": torch.arange(4000.0)}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def begin(path: Path) -> None:
    """Make the store, as the first ``mmprefix users add`` does."""
    with UserStore(path, create=True) as store:
        store.add_many(NEW)


def changed(change: Callable[[UserStore], object]) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        with UserStore(path) as store:
            change(store)

    return run


def many(store: UserStore) -> None:
    with store.transaction():
        store.add_many(NEW)
        store.remove(FIRST)
        store.update(SECOND, TEXTS)


CHANGES: dict[str, Callable[[Path], None]] = {
    "begin": begin,
    "add": changed(lambda store: store.add_many(NEW)),
    "append": changed(lambda store: store.update(FIRST, TEXTS, append=True)),
    "replace": changed(lambda store: store.update(FIRST, TEXTS)),
    "put": changed(lambda store: store.put(FIRST, "prefix", PREFIX)),
    "remove": changed(lambda store: store.remove(FIRST, SECOND, THIRD)),
    "transaction": changed(many),
}


def fill(path: Path) -> None:
    """Twelve users, with a tensor that was computed and one that was trained."""
    with UserStore(path, create=True) as store:
        store.add_many(USERS)
        for user in (FIRST, SECOND):
            store.put(user, "context", {"frames": torch.ones(300)}, computed_from=USERS[user])
            store.put(user, "own", {"embeds": torch.ones(300)})


def state(path: Path) -> dict[str, Any]:
    """All that the store holds, by user; it is sound, and no erasure is pending."""
    with UserStore(path, create=True) as store, closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("SELECT removals - erased FROM erasure").fetchone() == (0,)
        return {summary.user: store.export(summary.user) for summary in store.users()}


def in_child(work: Callable[[], object]) -> int:
    """Exit code of a forked process that does ``work``, or minus the signal that killed it."""
    process = os.fork()
    if not process:
        try:
            work()
        except BaseException as error:
            sys.settrace(None)
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class Steps:
    """Count of the lines of the package and of SQLite's own steps (ten a count) that work takes."""

    def __init__(self, last: float = float("inf")) -> None:
        self.count, self.last, self._connect = 0, last, sqlite3.connect

    def run(self, work: Callable[[], object]) -> None:
        """Do ``work``, and kill this process at the step ``last``."""
        sqlite3.connect = self._counted  # pyright: ignore[reportAttributeAccessIssue]
        sys.settrace(self._trace)
        work()
        sys.settrace(None)

    def _counted(self, *words: Any, **options: Any) -> sqlite3.Connection:
        connection = self._connect(*words, **options)
        connection.set_progress_handler(self._step, 10)
        return connection

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self._step()
        return self._trace

    def _step(self) -> int:
        self.count += 1
        if self.count >= self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0


def count_steps(work: Callable[[], object]) -> int:
    """Number of steps that ``work`` takes, counted in a process of its own."""
    read, write = os.pipe()

    def count() -> None:
        steps = Steps()
        steps.run(work)
        os.write(write, str(steps.count).encode())

    assert in_child(count) == 0
    os.close(write)
    with os.fdopen(read) as stream:
        return int(stream.read())


def copies(name: str, folder: Path) -> tuple[Path, Callable[[str], Path]]:
    """The store before the change ``name``, and a function that copies it."""
    before = folder / "before.db"
    if name != "begin":
        fill(before)

    def copy(number: str) -> Path:
        path = folder / f"{number}.db"
        if name != "begin":
            shutil.copy(before, path)
        return path

    return before, copy


def check(name: str, path: Path, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """True where the change was kept; it is there whole or not at all, and nothing is left of the removed."""
    held = state(path)
    assert held in (before, after), name
    gone = before.keys() - held.keys()
    assert traces(path, [text for user in gone for text in (user, *USERS[user])]) == []
    return held == after


@pytest.mark.parametrize("name", CHANGES)
def test_killed_at_any_step(name: str, tmp_path: Path) -> None:
    original, copy = copies(name, tmp_path)
    whole = copy("whole")
    steps = count_steps(lambda: CHANGES[name](whole))
    before, after = state(original), state(whole)
    assert before != after
    kept: list[bool] = []
    for point in range(POINTS):
        path, last = copy(str(point)), int((point + 0.5) * steps / POINTS)
        assert in_child(lambda path=path, last=last: Steps(last).run(lambda: CHANGES[name](path))) == -signal.SIGKILL
        kept.append(check(name, path, before, after))
    assert kept == sorted(kept)  # kept from some step on, and not before
    assert not kept[0]


def limited(work: Callable[[], object], size: int) -> None:
    """Do ``work``, killed by the system in the middle of a write that makes a file larger than ``size`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    work()


@pytest.mark.parametrize("name", CHANGES)
def test_killed_in_the_middle_of_a_write(name: str, tmp_path: Path) -> None:
    """The log is cut off after so many bytes: within its head, a page's head, a page."""
    original, copy = copies(name, tmp_path)
    whole = copy("whole")
    CHANGES[name](whole)
    before, after = state(original), state(whole)
    codes: set[int] = set()
    for size in (20, 40, 5000, 17_000, 33_000, 60_000, 100_000, 150_000):
        path = copy(str(size))
        codes.add(in_child(lambda path=path, size=size: limited(lambda: CHANGES[name](path), size)))
        check(name, path, before, after)
    assert -signal.SIGXFSZ in codes
    assert codes <= {-signal.SIGXFSZ, 0}


def test_killed_at_any_time(tmp_path: Path) -> None:
    """Users come and go in another process that is killed from outside; each is there whole, or not at all."""
    path = tmp_path / "users.db"
    fill(path)
    before = state(path)
    user, *_ = NEW

    def come_and_go() -> None:
        with UserStore(path) as store:
            while True:
                if user not in store:
                    store.add(user, TEXTS)
                store.update(user, [*TEXTS, "more"])
                store.remove(user)

    for point in range(10):
        process = os.fork()
        if not process:
            try:
                come_and_go()
            finally:
                os._exit(1)
        time.sleep(0.02 + 0.013 * point)
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        held = state(path)
        guest = held.pop(user, {"history": TEXTS})
        assert held == before
        assert guest["history"] in (TEXTS, [*TEXTS, "more"])
    with UserStore(path) as store:
        if user in store:
            store.remove(user)
    assert traces(path, [user, *TEXTS]) == []
