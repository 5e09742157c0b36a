"""Claims: no piece of work is taken twice; the work of a killed process is free again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from mmprefix.features.claims import Claims, claiming


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
    process = multiprocessing.get_context("spawn").Process(target=take_and_wait, args=(tmp_path, other))
    process.start()
    assert own.poll(120)
    assert own.recv()
    with claiming(tmp_path) as claims:
        assert not claims.take("a", never)
        end(process)  # pyright: ignore[reportArgumentType]
        process.join()
        assert claims.take("a", never)
        assert len(list((tmp_path / "claims").glob("*.txt"))) == 1  # the files of the killed process are removed
