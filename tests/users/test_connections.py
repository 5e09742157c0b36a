"""Processes that share a store: all writes arrive, and a fork takes no connection along."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmprefix.errors import InputError
from mmprefix.users import UserStore
from mmprefix.users.erasure import PendingErasureError
from tiny.disk import full_disk
from tiny.user_traces import traces

WRITER = """
import sys
from mmprefix.users import UserStore
path, name = sys.argv[1:]
with UserStore(path, create=True) as store:
    for number in range(12):
        store.add(f"{name} {number}", [name, str(number)])
        if number % 3 == 0:
            store.remove(f"{name} {number}")
"""


def test_processes_make_and_fill_a_store_together(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    programs = [subprocess.Popen([sys.executable, "-c", WRITER, path, name], env=environment) for name in "abcd"]
    assert [program.wait(timeout=120) for program in programs] == [0] * 4
    with UserStore(path) as store:
        expected = {f"{name} {number}" for name in "abcd" for number in range(12) if number % 3}
        assert {row.user for row in store.users()} == expected
        assert all(store.history(user) == user.split() for user in expected)


def test_a_store_that_another_makes_meanwhile_is_no_other_program_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two statements of the opening another process makes the store, where SQLite lets it."""
    connect = sqlite3.connect
    statement, path = 0, tmp_path

    class Interrupted(sqlite3.Connection):
        def execute(self, *words: Any) -> sqlite3.Cursor:
            nonlocal statement
            statement -= 1
            if statement == -1:
                with monkeypatch.context() as inner, suppress(InputError):
                    inner.setattr(sqlite3, "connect", connect)
                    UserStore(path, create=True, wait=0.02).close()
            return super().execute(*words)

    for number in range(14):
        statement, path = number, tmp_path / f"{number}.db"
        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", partial(connect, factory=Interrupted))
            with UserStore(path, create=True, wait=5) as store:
                store.add("u07")
                assert len(store) == 1
        assert statement < 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_opens_its_own_connection(tmp_path: Path) -> None:
    """Parent and child write in turn through one store object; each sees what the other wrote."""
    with UserStore(tmp_path / "users.db", create=True) as store:
        store.add("parent", ["a"])
        child = os.fork()
        if not child:
            code = 1
            try:
                store.add("child", store.history("parent"))
                store.remove("parent")
                store.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert store.history("child") == ["a"]
        assert "parent" not in store
        store.add("later")
        with closing(store._connections._open()) as connection:  # pyright: ignore[reportPrivateUsage]
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_full_disk_keeps_nothing_of_the_change(tmp_path: Path) -> None:
    with UserStore(tmp_path / "users.db", create=True) as store:
        store.add("u07", ["a"])
        with full_disk(100_000), pytest.raises(InputError, match=r"users\.db: "):
            store.add("u08", ["x" * 300_000])
        assert [row.user for row in store.users()] == ["u07"]
        store.add("u08", ["x" * 300_000])
        assert store.history("u08") == ["x" * 300_000]


def test_a_full_disk_holds_an_erasure_up_and_no_removal(tmp_path: Path) -> None:
    words = ["never to be seen again", "x" * 30_000]
    with UserStore(tmp_path / "users.db", create=True) as store:
        store.add_many({"u07": words, "u08": ["y" * 150_000]})
    with UserStore(tmp_path / "users.db") as store:
        with full_disk(120_000), pytest.raises(PendingErasureError, match="shown to nobody, but bytes of it are still"):
            store.remove("u07")
        assert [row.user for row in store.users()] == ["u08"]
    with UserStore(tmp_path / "users.db") as store:
        assert traces(store.path, words) == []
        assert store.history("u08") == ["y" * 150_000]
