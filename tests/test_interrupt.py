"""Stop signals: raised at once, or held back; exit codes and a line by the custom of shells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from mmprefix.interrupt import SIGNALS, Stopped, advice_if_stopped, hold_stop_signals, stop_signals

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def send(number: int) -> None:
    """Send a signal to this process, and wait for Python to handle it."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_where_nothing_holds_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stop, stop_signals(), advice_if_stopped("go on"), advice_if_stopped("near"):
        send(number)
    assert stop.value.exit_code == CODES[number]
    assert str(stop.value) == f"stopped by {number.name}; near"
    assert signal.getsignal(number) is before


def hold_and_look(number: int, steps: list[str]) -> None:
    """Take a signal within a step, and look for it behind the step."""
    with stop_signals(), hold_stop_signals() as held:
        held.check()
        send(number)
        steps.append("done")
        held.check()
        steps.append("more")


def hold_and_end(number: int, steps: list[str]) -> None:
    """Take a signal that nobody looks for before the outer block ends."""
    with stop_signals(), hold_stop_signals():
        with hold_stop_signals():
            send(number)
        steps.append("done")


def hold_twice(number: int, steps: list[str]) -> None:
    """Take a second signal within a step."""
    with hold_stop_signals():
        send(number)
        steps.append("done")
        send(number)
        steps.append("more")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("work", [hold_and_look, hold_and_end, hold_twice])
def test_a_held_signal_is_raised_where_the_work_can_stop(
    number: signal.Signals, work: Callable[[int, list[str]], None]
) -> None:
    steps: list[str] = []
    with pytest.raises(Stopped, match=number.name):
        work(number, steps)
    assert steps == ["done"]


def test_a_held_signal_goes_to_the_handler_from_before() -> None:
    def in_hold(number: int) -> None:
        with hold_stop_signals():
            send(number)

    with pytest.raises(KeyboardInterrupt):
        in_hold(signal.SIGINT)  # as in a notebook
    with pytest.raises(Stopped):
        in_hold(signal.SIGTERM)  # whose default would end the process without any cleaning up


def test_an_ignored_signal_stays_ignored_and_other_threads_stay_as_they_are() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    ends: list[str] = []

    def work() -> None:
        with stop_signals(), hold_stop_signals() as held:
            held.check()
        ends.append("end")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ends == ["end"]
    assert signal.getsignal(signal.SIGINT) is before


def test_no_handler_for_faults_takes_a_stop() -> None:
    assert not issubclass(Stopped, Exception | KeyboardInterrupt)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_worker_leaves_ctrl_c_to_its_parent_and_dies_of_sigterm() -> None:
    for number, code in ((signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)):
        with stop_signals():
            child = os.fork()
            if not child:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


@pytest.mark.parametrize("number", SIGNALS)
def test_the_shell_answers_a_signal_with_its_exit_code_and_one_line(number: signal.Signals) -> None:
    program = (
        "import sys, time, mmprefix.cli.main as m\n"
        "m._run = lambda words: (print('ready', flush=True), time.sleep(300))\n"
        "sys.exit(m.main(['any']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == CODES[number]
    assert errors == f"mmprefix: stopped by {number.name}\n"


def native_error() -> None:
    """Fail as an operator of torch does that a signal reached: with an error of its own."""
    try:
        send(signal.SIGTERM)
    except Stopped:
        raise RuntimeError("no shape") from None


def test_native_code_may_take_a_signal_for_an_error_of_its_own() -> None:
    with pytest.raises(Stopped, match="stopped by SIGTERM; no shape") as stop, stop_signals():
        native_error()
    assert stop.value.exit_code == 143
    with pytest.raises(RuntimeError, match="no signal"), stop_signals():
        raise RuntimeError("no signal")
