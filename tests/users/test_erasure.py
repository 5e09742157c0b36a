"""Erasure: no byte of a removed user stays in the file, its log or its journal, whatever came before."""

from __future__ import annotations

import logging
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from mmprefix.errors import InputError
from mmprefix.users import UserStore
from mmprefix.users.erasure import PendingErasureError, is_pending
from tiny.user_traces import bytes_on_disk, random_history, random_text, traces


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UserStore]:
    with UserStore(tmp_path / "users.db", create=True, wait=0.3) as store:
        yield store


def pending(store: UserStore) -> bool:
    with closing(sqlite3.connect(store.path)) as connection:
        return is_pending(connection)


def random_bytes(draw: random.Random, size: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(draw.randbytes(size)), dtype=torch.uint8)


def test_nothing_is_left_after_many_cycles(store: UserStore) -> None:
    """Users of all sizes come, change and go; after each removal no fragment of them, and all others are whole."""
    draw = random.Random(0)
    present: dict[str, list[str]] = {}
    gone: list[str | bytes] = []
    past: dict[str, list[str | bytes]] = {}
    for cycle in range(6):
        new = {random_text(draw, draw.choice((12, 30, 255))): random_history(draw) for _ in range(60)}
        store.add_many(new)
        present |= new
        with store.transaction():
            for user in draw.sample(sorted(present), 40):
                tensor = random_bytes(draw, draw.choice((20, 500, 6000)))
                store.put(user, "prefix", {"a": tensor})
                past.setdefault(user, []).append(tensor.numpy().tobytes())
        for user in draw.sample(sorted(present), 20):
            append, texts = draw.random() < 0.5, random_history(draw)
            store.update(user, texts, append=append)
            past.setdefault(user, []).extend(present[user])
            present[user] = [*present[user], *texts] if append else texts
        if cycle % 2:
            store.erase()
        removed = draw.sample(sorted(present), 45)
        store.remove(*removed)
        gone = [text for user in removed for text in (user, *present.pop(user), *past.pop(user, []))]
        assert traces(store.path, gone) == []
    assert {user: store.history(user) for user in present} == present
    assert traces(store.path, list(present)[:1])  # the search sees those who stay


def test_zeros_alone_would_not_do(tmp_path: Path, store: UserStore) -> None:
    """The old pages are in the file and its log until both are written anew, so the search must see them before."""
    words = [random_text(random.Random(1), 3000)]
    store.add("u07", words)
    with store._connections.writing() as connection:  # pyright: ignore[reportPrivateUsage]
        connection.execute("DELETE FROM users")
    assert traces(store.path, words)
    store.erase()
    assert traces(store.path, words) == []


def test_a_reader_of_an_older_state_is_named_and_what_it_holds_goes_later(
    store: UserStore, caplog: pytest.LogCaptureFixture
) -> None:
    words = random_history(random.Random(4))
    assert words
    store.add("u07", words)
    store.add("u08", ["stays"])
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT COUNT(*) FROM texts").fetchone()[0] == len(words) + 1
        with pytest.raises(
            PendingErasureError, match=r"shown to nobody, but bytes of it are still in the file .*0\.3 s"
        ):
            store.remove("u07")
        assert traces(store.path, words)
        assert "u07" not in store
        assert store.tensors("u07", "prefix") is None
        store.update("u08", ["and changes"], append=True)  # others read and write as before
        assert store.history("u08") == ["stays", "and changes"]
        with caplog.at_level(logging.WARNING), UserStore(store.path, wait=0.1) as other:  # it can be opened
            assert len(other) == 1
        assert "bytes of it are still in the file" in caplog.text
    assert pending(store)
    with UserStore(store.path) as other:
        assert traces(store.path, words) == []
        assert not pending(other)


def test_closing_erases_what_a_reader_held_up(store: UserStore) -> None:
    words = [random_text(random.Random(5), 500)]
    store.add("u07", words)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM texts").fetchone()
        with pytest.raises(PendingErasureError):
            store.remove("u07")
    store.close()
    assert traces(store.path, words) == []


CHECKPOINT = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX, 1, 121)  # the lock of a checkpoint: https://www.sqlite.org/walformat.html#locking_matrix
print("locked", flush=True)
time.sleep(0.5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes SQLite's lock as Linux has it")
def test_another_that_empties_the_log_is_waited_for(tmp_path: Path) -> None:
    words = [random_text(random.Random(6), 500)]
    with UserStore(tmp_path / "users.db", create=True, wait=60) as store:
        store.add("u07", words)
        command = [sys.executable, "-c", CHECKPOINT, f"{store.path}-shm"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            store.remove("u07")
        assert other.returncode == 0
        assert traces(store.path, words) == []
        assert not pending(store)


def test_another_writer_is_named(store: UserStore) -> None:
    store.add("u07")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match=r"users\.db: another program has it for longer than 0\.3 s") as refused:
            store.remove("u07")
        assert not isinstance(refused.value, PendingErasureError)
        with pytest.raises(PendingErasureError, match="still in the file"):
            store.erase()
    assert "u07" in store


def test_an_erasure_of_one_process_does_not_count_for_a_later_removal(store: UserStore) -> None:
    """Another process removes a user, and is killed, while this one erases: the removal stays to be made up for."""
    store.add_many({"u07": ["a"], "u08": ["b"]})
    with store._connections.writing() as connection:  # pyright: ignore[reportPrivateUsage]
        connection.execute("UPDATE erasure SET removals = removals + 2")
    with closing(sqlite3.connect(store.path)) as other:
        other.execute("UPDATE erasure SET erased = removals - 1")
        other.commit()
    assert pending(store)
    store.close()
    with UserStore(store.path) as again:
        assert not pending(again)


def test_pages_that_are_freed_leave_the_file(store: UserStore) -> None:
    store.add("u07", ["x" * 100_000])
    store.add("u08", ["y"])
    store.remove("u07")
    assert len(bytes_on_disk(store.path)) < 70_000
