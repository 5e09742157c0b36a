"""Dynamic batching: jobs with equal keys that wait at the same time are computed in one call, by one thread.

A job that finds the thread idle waits at most ``max_wait`` seconds for others; while the thread computes, jobs gather.
The key whose oldest job has waited longest goes first, so that no kind of request starves another.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class _Job(Generic[Row]):
    """A row, the future of its result, and when it came."""

    row: Row
    future: Future[Any] = field(default_factory=Future[Any])
    arrived: float = field(default_factory=time.monotonic)


class StoppedError(RuntimeError):
    """The batcher takes no more jobs."""


class Batcher(Generic[Key, Row]):
    """Thread that computes jobs in batches.

    Args:
        compute: (key, rows) → a result or an exception a row, in the rows' order. If it raises, every row of the batch
            without a result is computed alone, and has its own result or exception.
        max_batch: most rows of a call.
        max_wait: most seconds that a job waits for others while the thread is idle.
        observe: called before each batch with its key, its size and the seconds that its oldest job has waited.
    """

    def __init__(
        self,
        compute: Callable[[Key, Sequence[Row]], Iterable[Any]],
        *,
        max_batch: int = 32,
        max_wait: float = 0.005,
        observe: Callable[[Key, int, float], None] = lambda key, size, seconds: None,
    ) -> None:
        self._compute, self._observe = compute, observe
        self.max_batch, self.max_wait = max_batch, max_wait
        self._waiting: dict[Key, deque[_Job[Row]]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mmprefix-batcher", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Number of jobs that wait."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def submit(self, key: Key, row: Row) -> Future[Any]:
        """Future of the result of ``row``; cancelling it takes the job out of the queue. Raises StoppedError."""
        job = _Job(row)
        with self._changed:
            if self._closing:
                raise StoppedError
            self._waiting.setdefault(key, deque()).append(job)
            self._changed.notify()
        return job.future

    def close(self, timeout: float | None = None) -> None:
        """Compute what waits, then end the thread; waits for that at most ``timeout`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            key, jobs = batch
            begun = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if begun:
                self._observe(key, len(begun), time.monotonic() - min(job.arrived for job in begun))
                self._run(key, begun)

    def _next(self) -> tuple[Key, list[_Job[Row]]] | None:
        """Key and jobs of the next batch; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            key = min(self._waiting, key=lambda each: self._waiting[each][0].arrived)
            jobs = self._waiting[key]
            end = jobs[0].arrived + self.max_wait
            while len(jobs) < self.max_batch and not self._closing and (rest := end - time.monotonic()) > 0:
                self._changed.wait(rest)
            batch = [jobs.popleft() for _ in range(min(len(jobs), self.max_batch))]
            if not jobs:
                del self._waiting[key]
            return key, batch

    def _run(self, key: Key, jobs: Sequence[_Job[Row]]) -> None:
        """Give each job its result; after a failure of the whole, those without one are computed alone."""
        done = 0
        try:
            results = iter(self._compute(key, [job.row for job in jobs]))
            for job, result in zip(jobs, results, strict=True):
                done += 1
                _settle(job.future, result)
        except Exception as error:
            if len(jobs) == 1:
                if not jobs[0].future.done():
                    jobs[0].future.set_exception(_without_frames(error))
                return
            for job in jobs[done:]:
                self._run(key, [job])


def _settle(future: Future[Any], result: Any) -> None:
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


def _without_frames(error: Exception) -> Exception:
    """``error`` without the frames that it came through: they would hold a batch's inputs as long as the error."""
    return error.with_traceback(None)
