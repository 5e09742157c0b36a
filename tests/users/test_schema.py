"""Files of earlier versions are brought to the present one; later ones and other programs' are refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mmprefix.errors import InputError
from mmprefix.users import UserStore
from mmprefix.users.schema import MIGRATIONS, VERSION
from tiny.user_traces import random_history, random_text, traces

OLD = {"u07": ["a dog runs", "🐕 again", ""], "Zoë": [], "u08": ["x" * 9000]}


def write_version_0(path: Path, users: dict[str, list[str]]) -> None:
    """A store as version 0 wrote it, with a user who was deleted without care."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE users (id TEXT PRIMARY KEY, history TEXT)")
        rows = [(user, json.dumps(texts)) for user, texts in users.items()]
        connection.executemany("INSERT INTO users VALUES (?, ?)", rows)


def versions(path: Path) -> tuple[int, str]:
    with closing(sqlite3.connect(path)) as connection:
        return tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "journal_mode"))  # pyright: ignore[reportReturnType]


def test_a_store_of_version_0_is_read_and_becomes_the_present_one(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    write_version_0(path, OLD)
    assert versions(path) == (0, "delete")
    with UserStore(path) as store:
        assert {row.user: store.history(row.user) for row in store.users()} == OLD
        store.add("new", ["a"])
    assert versions(path) == (VERSION, "wal") == (len(MIGRATIONS), "wal")
    with UserStore(path) as store:
        assert len(store) == len(OLD) + 1


def test_nothing_of_a_user_is_left_in_pages_of_version_0(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    draw = random.Random(0)
    users = {random_text(draw, 20): random_history(draw) for _ in range(30)}
    write_version_0(path, users)
    with UserStore(path) as store:
        removed = list(users)[::2]
        store.remove(*removed)
        assert traces(path, [text for user in removed for text in (user, *users[user])]) == []


@pytest.mark.parametrize("history", ["[", '"one text"', "[1]"])
def test_a_migration_that_fails_leaves_the_file_as_it_was(history: str, tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    write_version_0(path, OLD)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO users VALUES ('broken', ?)", (history,))
    with pytest.raises(InputError, match=r"old\.db: cannot be brought from version 0 to 1 \("):
        UserStore(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM users WHERE history IS NOT NULL").fetchone() == (len(OLD) + 1,)
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)


def later(path: Path) -> None:
    UserStore(path, create=True).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 6}")


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE bookmarks (id TEXT, history TEXT)")


def other_version_1(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE users (id TEXT, history TEXT)")
        connection.execute("PRAGMA user_version = 1")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "later": (later, rf"a store of version {VERSION + 6}; this mmprefix reads up to {VERSION}: update mmprefix"),
    "other program": (other_program, "an SQLite database, but no store of users"),
    "other program of version 1": (other_version_1, "an SQLite database, but no store of users"),
    "text": (lambda path: path.write_text("u07: a dog\n" * 100), "no SQLite database, so no store of users"),
    "short text": (lambda path: path.write_text("u07"), "no SQLite database, so no store of users"),
    "folder": (lambda path: path.mkdir(), "a folder; a store of users is one file"),
}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_are_refused_stay_as_they_are(kind: str, create: bool, tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    make, reason = REFUSED[kind]
    make(path)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(InputError, match=reason) as refused:
        UserStore(path, create=create)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)
    assert before is None or path.read_bytes() == before


def test_a_missing_store_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"users\.db: no such store; mmprefix users add, .*, makes one"):
        UserStore(tmp_path / "users.db")
    with pytest.raises(InputError, match=r"users\.db: cannot be made or written \(No such file or directory\)"):
        UserStore(tmp_path / "none" / "users.db", create=True)
    assert list(tmp_path.iterdir()) == []


def test_names_of_files_may_hold_any_character(tmp_path: Path) -> None:
    for name in ("ü ?#%20&x=1.db", "file:users.db", "a\udcffb.db", ":memory:"):
        with UserStore(tmp_path / name, create=True) as store:
            store.add("u07")
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        with UserStore(tmp_path / name) as store:
            assert len(store) == 1


def test_an_empty_file_is_an_empty_store(tmp_path: Path) -> None:
    """A process that was killed while it made the store leaves one."""
    (tmp_path / "users.db").touch()
    with UserStore(tmp_path / "users.db") as store:
        assert len(store) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("create", [False, True])
def test_a_read_only_place_is_one_line(create: bool) -> None:
    """A user without rights opens a store in a folder that only root may write, and one whose file is read-only."""
    folder = Path(tempfile.mkdtemp())
    try:
        UserStore(folder / "users.db", create=True).close()
        (folder / "users.db").chmod(0o444)
        folder.chmod(0o555)
        report = _as_nobody(lambda: _refusal(folder / "users.db", create))
        assert report.startswith(f"{folder / 'users.db'}: ")
        assert "\n" not in report
        assert any(word in report for word in ("read-only", "Permission denied", "cannot be opened"))
        assert "Permission denied" in _as_nobody(lambda: _refusal(folder / "new.db", create=True))
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def _refusal(path: Path, create: bool) -> str:
    try:
        with UserStore(path, create=create) as store:
            store.add("u07")
    except InputError as error:
        return str(error)
    return "no error"


def _as_nobody(call: Callable[[], str]) -> str:
    """Result of ``call`` in a forked process without root's rights."""
    read, write = os.pipe()
    if not os.fork():
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            os.write(write, call().encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    os.wait()
    return text
