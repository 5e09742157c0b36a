"""Processes forked from this one: they have imported what it has, which takes a new one many seconds."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Forked:
    """Process of its own that does ``work`` and exits with what it returns; its output goes to ``log``.

    A child has no threads of its parent, so that it computes in one. ``leads`` makes it lead a process group.
    """

    def __init__(self, work: Callable[[], int], log: Path, *, leads: bool = False) -> None:
        self.log, self.began = log, time.monotonic()
        self._code: int | None = None
        log.touch()  # whoever reads it need not wait for the child
        sys.stdout.flush()
        sys.stderr.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one inside what Python does after a fork: it hangs
        try:
            self.pid = os.fork()
            if not self.pid:
                self._work(work, leads, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _work(self, work: Callable[[], int], leads: bool, mask: Iterable[int]) -> None:
        code = 70
        try:
            if leads:
                os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
            file = os.open(self.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
            torch.set_num_threads(1)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = work()
        except BaseException as error:  # the child must never return into the parent's program
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """Exit code; None while it runs."""
        if self._code is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if process else None
        return self._code

    def wait(self, seconds: float = 240.0) -> int:
        """Exit code. Raises TimeoutError, and ends the process, where it takes longer."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.send_signal(signal.SIGUSR1)  # writes where it stands
                time.sleep(0.5)
                self.kill()
                written = self.log.read_text(errors="replace")[-4000:]
                raise TimeoutError(f"{self.log}: still runs after {seconds} s\n{written}")
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> int:
        """End it at once where it still runs; its exit code."""
        self.send_signal(signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.001)
        return self.poll() or 0
