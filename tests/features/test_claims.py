"""Claims: no piece of work is taken twice; the work of a killed process is free again."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from mmprefix.errors import InputError
from mmprefix.features.claims import LEASE, Claims, claiming, remove_dead_claims
from tiny.stepped_writers import SteppedWriter, Work


def never() -> bool:
    return False


def take_and_wait(folder: Path, pipe: Connection) -> None:
    """Take "a" in this process, report it, and live until the pipe is closed."""
    claims = Claims(folder)
    pipe.send(claims.take("a", never))
    pipe.recv()


def test_work_is_taken_once(tmp_path: Path) -> None:
    with claiming(tmp_path) as first, claiming(tmp_path) as second:
        assert first.take("a", never)
        assert not first.take("a", never)
        assert not second.take("a", never)
        assert second.take("b", never)
        assert not second.take("c", lambda: True)  # done by an earlier process
        first.release(["a"])
        assert second.take("a", never)
    assert [file.name for file in (tmp_path / "claims").iterdir() if not file.name.startswith(".")] == []


@pytest.mark.parametrize("end", [multiprocessing.Process.kill, multiprocessing.Process.terminate])
def test_the_work_of_a_killed_process_is_free_again(
    end: Callable[[multiprocessing.Process], None], tmp_path: Path
) -> None:
    own, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=take_and_wait, args=(tmp_path, other))
    process.start()
    assert own.poll(300)
    assert own.recv()
    with claiming(tmp_path) as claims:
        assert not claims.take("a", never)
        end(process)  # pyright: ignore[reportArgumentType]
        process.join()
        assert claims.take("a", never)
        assert len(list((tmp_path / "claims").glob("*.txt"))) == 1  # the files of the killed process are removed


def on_another_machine(claims: Claims, folder: Path, work: str) -> str:
    """Leave the claim file of a process of another machine, which a network file system shows with a free lock."""
    name = f"host-{'0' * 8}-{os.getpid()}-{'1' * 16}"
    assert claims.machine != "0" * 8
    (folder / "claims" / f"{name}.txt").write_text(work)
    (folder / "claims" / f"{name}.lock").write_text("")
    return name


def test_a_process_on_another_machine_lives_while_it_touches_its_file(tmp_path: Path) -> None:
    with claiming(tmp_path) as claims:
        name = on_another_machine(claims, tmp_path, "a")
        assert not claims.take("a", never)
        assert not claims.any_free(["a"])
        assert claims.any_free(["a", "b"])
        left = tmp_path / f".{name}-00000.safetensors.host.7.0123456789abcdef.tmp"
        left.write_text("half a shard")
        for file in (tmp_path / "claims").glob(f"{name}*"):
            os.utime(file, (time.time() - LEASE + 60, time.time() - LEASE + 60))
        assert not claims.take("a", never)
        for file in (tmp_path / "claims").glob(f"{name}*"):
            os.utime(file, (time.time() - LEASE - 1, time.time() - LEASE - 1))
        assert claims.take("a", never)
        assert not left.exists()
        assert {file.name for file in (tmp_path / "claims").glob("*host*")} == set()


def test_the_lock_decides_on_one_machine_however_old_the_claim_is(tmp_path: Path) -> None:
    with claiming(tmp_path) as first, claiming(tmp_path) as second:
        assert first.take("a", never)
        for file in (tmp_path / "claims").glob(f"{first.name}*"):
            os.utime(file, (0, 0))  # as after a night asleep
        assert not second.take("a", never)


def test_a_process_that_was_taken_for_dead_claims_again(tmp_path: Path) -> None:
    with claiming(tmp_path) as first, claiming(tmp_path) as second:
        assert first.take("a", never)
        for file in (tmp_path / "claims").glob(f"{first.name}*"):
            file.unlink()
        first.renew()
        assert (tmp_path / "claims" / f"{first.name}.txt").read_text() == "a"
        assert second.take("b", never)
    assert [file.name for file in (tmp_path / "claims").iterdir()] == [".lock"]


def dead_process() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with claiming(tmp_path) as claims:
        name = f"{claims.name.rpartition('-')[0]}-{'2' * 16}"
    left = [tmp_path / "claims" / end for end in (f"{name}.lock", f"{name}.txt", f".{name}.new")]
    left.append(tmp_path / f".{name}-00003.safetensors.host.7.0123456789abcdef.tmp")
    left.append(tmp_path / f".index.{socket.gethostname()[:40]}.{dead_process()}.0123456789abcdef.tmp")
    for file in left:
        file.write_text("a")
    with claiming(tmp_path):
        assert [file for file in left if file.exists()] == []


def refuse(reason: int, file: int, operation: int) -> None:
    """Refuse a lock as the system does."""
    raise OSError(reason, os.strerror(reason))


def test_a_store_that_is_full_is_cleaned_of_dead_claims_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove_dead_claims(tmp_path)
    assert list(tmp_path.iterdir()) == []  # a store that was never filled by this machine stays as it is
    own, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=take_and_wait, args=(tmp_path, other))
    process.start()
    assert own.poll(300)
    folder = tmp_path / "claims"
    before = sorted(folder.iterdir())
    remove_dead_claims(tmp_path)
    assert sorted(folder.iterdir()) == before
    process.kill()
    process.join()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", partial(refuse, errno.EROFS))
        remove_dead_claims(tmp_path)  # a disk that cannot be written: no error
    assert sorted(folder.iterdir()) == before
    remove_dead_claims(tmp_path)
    assert [file.name for file in folder.iterdir()] == [".lock"]


def test_the_last_one_to_end_cleans_up_after_the_killed(tmp_path: Path) -> None:
    own, other = multiprocessing.Pipe()
    with claiming(tmp_path):
        process = multiprocessing.get_context("fork").Process(target=take_and_wait, args=(tmp_path, other))
        process.start()
        assert own.poll(300)
        process.kill()
        process.join()
    assert [file.name for file in (tmp_path / "claims").iterdir()] == [".lock"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("lines", range(0, 100, 10))
def test_a_writer_killed_at_any_line_leaves_no_claim(lines: int, tmp_path: Path) -> None:
    """It begins to claim while another ends the work, and is killed so many lines later; a third finds all done."""
    work = Work((0, 1), shard_batches=1)
    killed = SteppedWriter(tmp_path, work)
    while not list(tmp_path.glob("*/claims")):
        killed.step(1)
    finish(SteppedWriter(tmp_path, work))
    killed.step(lines)
    if killed.code is None:
        killed.kill()
    finish(SteppedWriter(tmp_path, work))
    assert [file.name for file in tmp_path.glob("*/claims/*")] == [".lock"]


def finish(writer: SteppedWriter) -> None:
    """Let ``writer`` run to its end."""
    while writer.code is None:
        writer.step(300)
    assert writer.code == 0


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_one_line(reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", partial(refuse, reason))
    with pytest.raises(InputError, match=r"claims: its file system refuses a lock .* give a folder on another disk"):
        Claims(tmp_path)
