"""Stop signals: SIGTERM and Ctrl-C end a run with what is done kept, one line that says how to go on, 143 or 130.

``main`` runs a verb within ``stop_signals``: a signal raises ``Stopped`` wherever the verb is. Work that must not be
cut in two is done within ``hold_stop_signals``: a signal is noted, and the work looks for it where it can stop.
``Stopped`` is no Exception, so that no ``except Exception`` takes it for a fault, and no KeyboardInterrupt, which
Lightning answers with exit code 1.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """The end of a run that a signal asked for. ``advice`` says what was kept, and how to go on."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(number, advice)
        self.signal, self.advice = signal.Signals(number), advice

    @property
    def exit_code(self) -> int:
        """Exit code by the custom of shells: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signal

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}" + (f"; {self.advice}" if self.advice else "")


class HeldSignals:
    """Signal that has arrived while signals are held back, or None."""

    def __init__(self) -> None:
        self.arrived: signal.Signals | None = None

    def check(self) -> None:
        """Raise Stopped where a signal has arrived: to be called where the work can stop."""
        if self.arrived is not None:
            raise Stopped(self.arrived)


@contextmanager
def stop_signals() -> Generator[None, None, None]:
    """Turn SIGTERM and SIGINT into ``Stopped``, raised where the main thread is when they arrive.

    Native code may take it for an error of its own, and raise another: the block still ends with ``Stopped``.
    """
    arrived: list[int] = []

    def stop(number: int) -> None:
        arrived.append(number)
        raise Stopped(number)

    with _handled_by(stop):
        try:
            yield
        except Exception as error:
            if not arrived:
                raise
            raise Stopped(arrived[0], str(error)) from error


@contextmanager
def hold_stop_signals() -> Generator[HeldSignals, None, None]:
    """Hold SIGTERM and SIGINT back until ``check``, or the end of the block; the second one raises ``Stopped`` at once.

    At the end of the block the signal goes to the handler from before, so that blocks may lie in one another. In a
    thread that is not the main one signals stay as they are.
    """
    held = HeldSignals()

    def note(number: int) -> None:
        if held.arrived is not None:
            raise Stopped(number)
        held.arrived = signal.Signals(number)

    with _handled_by(note):
        yield held
    if held.arrived is None or signal.getsignal(held.arrived) is signal.SIG_DFL:
        held.check()
    else:
        signal.raise_signal(held.arrived)


@contextmanager
def advice_if_stopped(advice: str) -> Generator[None, None, None]:
    """Add ``advice`` to a ``Stopped`` that passes through and has none yet."""
    try:
        yield
    except Stopped as stop:
        stop.advice = stop.advice or advice
        raise


@contextmanager
def _handled_by(handle: Callable[[int], None]) -> Generator[None, None, None]:
    """Let ``handle`` answer stop signals of this process; one that its parent has it ignore stays ignored."""
    owner = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handle(number)
        elif number != signal.SIGINT:  # a forked worker: Ctrl-C reaches it too, and its parent will end it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        kept = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: one for number, one in kept.items() if one not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)
