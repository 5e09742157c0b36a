"""One case in a child of its own, with limits of time and memory; most are forked, some are new processes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .cases import Case, make_case

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = (0, 2, 3)
MOST_SECONDS, MOST_BYTES = 20.0, 2e9
_PATIENCE = 8  # a busy machine gives a process a part of its time: seconds on the clock for one of a processor
_ROOM = 6 << 30  # address space beyond that of the parent, so that no input fills the machine


@dataclass(frozen=True)
class Outcome:
    """Result of a case; ``fault`` is None where all holds."""

    number: int
    kind: str
    change: str
    code: int
    seconds: float
    bytes: float
    message: str
    fault: str | None


def run_case(number: int, seed: int, base: Path, *, fresh: bool = False) -> Outcome:
    """Run case ``number``: forked from this process, or ``fresh``, as a new one."""
    with tempfile.TemporaryDirectory(prefix="fuzz.") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        case = make_case(number, seed, folder / "in", base)
        status, used, seconds = (_spawned if fresh else _forked)(case, folder)
        code = os.waitstatus_to_exitcode(status)
        out = (folder / "out").read_text(encoding="utf-8", errors="replace")
        error = (folder / "err").read_text(encoding="utf-8", errors="replace")
        note = (folder / "fault").read_text() if (folder / "fault").exists() else None
    peak = used.ru_maxrss * 1024
    fault = note or _fault(code, out + error, seconds, peak)
    lines = [line for line in error.splitlines() if line.startswith("mmprefix: ")]
    return Outcome(number, case.kind, case.change, code, seconds, peak, (lines or [""])[-1][:300], fault)


def _fault(code: int, text: str, seconds: float, peak: float) -> str | None:
    if "Traceback (most recent call last)" in text:
        return f"traceback: {text.strip().splitlines()[-1][:200]}"
    if code not in ALLOWED:
        return f"exit code {code}: {(text.strip().splitlines() or [''])[-1][:300]}"
    if seconds > MOST_SECONDS:
        return f"{seconds:.0f} s"
    if peak > MOST_BYTES:
        return f"{peak / 1e9:.1f} GB"
    return None


def _forked(case: Case, folder: Path) -> tuple[int, resource.struct_rusage, float]:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _child(case, folder)
    return _wait(child)


def _wait(child: int) -> tuple[int, resource.struct_rusage, float]:
    """Status, use and seconds of processor of a child, which is killed after its time."""
    until = time.monotonic() + MOST_SECONDS * _PATIENCE
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            return status, used, used.ru_utime + used.ru_stime
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            return status, used, MOST_SECONDS * _PATIENCE
        time.sleep(0.01)


def _child(case: Case, folder: Path) -> None:
    """Run the command line in this child, check what it did, and end."""
    code = 70
    try:
        _limit()
        for number, name in ((1, "out"), (2, "err")):
            stream = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            os.dup2(stream, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(folder)
        from mmprefix.cli.main import main

        try:
            code = main(case.words)
        except SystemExit as stop:
            code = int(stop.code or 0)
        sys.stdout.flush()
        if fault := case.check(code, (folder / "out").read_text(encoding="utf-8", errors="replace")):
            (folder / "fault").write_text(fault)
    except BaseException:  # the child must never return into the parent's program
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _spawned(case: Case, folder: Path) -> tuple[int, resource.struct_rusage, float]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (folder / "out").open("w") as out, (folder / "err").open("w") as error:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "mmprefix", *case.words],
            stdin=subprocess.DEVNULL, stdout=out, stderr=error, cwd=folder, env=environment,
        )  # fmt: skip
        result = _wait(process.pid)
        process.returncode = 0  # waited for already
    return result
