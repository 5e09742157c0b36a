"""Dynamic batching: which jobs share a call, in which order, and whose an error is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from mmprefix.serving.batcher import Batcher, StoppedError


class Recorder:
    """Computation that squares numbers, keeps the batches, and waits for ``go`` before each."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.go, self.entered = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, key: str, rows: Sequence[int]) -> list[Any]:
        self.batches.append((key, list(rows)))
        self.entered.release()
        assert self.go.acquire(timeout=20)
        return [row * row if row >= 0 else ValueError(row) for row in rows]


def busy(recorder: Recorder, batcher: Batcher[str, int]) -> Future[Any]:
    """First job, at which the thread stands until it may go on."""
    first = batcher.submit("first", 1)
    assert recorder.entered.acquire(timeout=20)
    return first


def test_jobs_that_gather_while_the_thread_is_busy_share_a_call_by_key() -> None:
    recorder = Recorder()
    batcher = Batcher[str, int](recorder, max_batch=3, max_wait=0)
    first = busy(recorder, batcher)
    futures = [batcher.submit("ab"[n % 2], n) for n in range(7)]
    assert len(batcher) == 7
    recorder.go.release(10)
    assert [future.result(20) for future in futures] == [n * n for n in range(7)]
    assert first.result() == 1
    assert recorder.batches[1:] == [("a", [0, 2, 4]), ("b", [1, 3, 5]), ("a", [6])]
    batcher.close(20)


def test_an_idle_thread_waits_for_others_and_not_when_the_batch_is_full() -> None:
    recorder = Recorder()
    recorder.go.release(10)
    batcher = Batcher[str, int](recorder, max_batch=3, max_wait=60)
    futures = [batcher.submit("a", n) for n in range(3)]
    assert [future.result(20) for future in futures] == [0, 1, 4]  # long before the minute is over
    assert recorder.batches == [("a", [0, 1, 2])]
    last = batcher.submit("a", 5)
    batcher.close(20)  # what waits is computed
    assert last.result(0) == 25


def test_an_error_is_its_row_s_own() -> None:
    recorder = Recorder()
    batcher = Batcher[str, int](recorder, max_wait=0)
    busy(recorder, batcher)
    futures = [batcher.submit("a", n) for n in (2, -3, 4)]
    recorder.go.release(10)
    assert [futures[0].result(20), futures[2].result(20)] == [4, 16]
    with pytest.raises(ValueError, match="-3"):
        futures[1].result(20)
    batcher.close(20)


def test_a_call_that_fails_as_a_whole_is_repeated_row_by_row() -> None:
    calls: list[list[int]] = []

    def compute(key: str, rows: Sequence[int]) -> list[int]:
        calls.append(list(rows))
        if 13 in rows:
            raise RuntimeError("unlucky")
        return list(rows)

    recorder = Recorder()
    batcher = Batcher[str, int](lambda key, rows: (recorder if key == "first" else compute)(key, rows), max_wait=0)
    busy(recorder, batcher)
    futures = [batcher.submit("a", n) for n in (12, 13, 14)]
    recorder.go.release(10)
    assert [futures[0].result(20), futures[2].result(20)] == [12, 14]
    with pytest.raises(RuntimeError, match="unlucky"):
        futures[1].result(20)
    assert calls == [[12, 13, 14], [12], [13], [14]]
    batcher.close(20)


def test_too_few_results_are_an_error_and_not_another_row_s_answer() -> None:
    recorder = Recorder()

    def compute(key: str, rows: Sequence[int]) -> list[Any]:
        return recorder(key, rows) if key == "first" else [row for row in rows if row != 7]

    batcher = Batcher[str, int](compute, max_wait=0)
    busy(recorder, batcher)
    futures = [batcher.submit("a", n) for n in (7,)]
    recorder.go.release(10)
    with pytest.raises(ValueError, match="shorter"):
        futures[0].result(20)
    batcher.close(20)


def test_a_job_that_is_given_up_is_not_computed() -> None:
    recorder = Recorder()
    batcher = Batcher[str, int](recorder, max_wait=0)
    busy(recorder, batcher)
    futures = [batcher.submit("a", n) for n in range(3)]
    assert futures[1].cancel()
    recorder.go.release(10)
    assert [futures[0].result(20), futures[2].result(20)] == [0, 4]
    assert recorder.batches[1:] == [("a", [0, 2])]
    batcher.close(20)


def test_a_closed_batcher_takes_nothing() -> None:
    batcher = Batcher[str, int](lambda key, rows: rows)
    batcher.close(20)
    assert not batcher.alive
    with pytest.raises(StoppedError):
        batcher.submit("a", 1)
