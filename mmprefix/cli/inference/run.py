"""A run over rows: results written as they come, a line for each bad input and their count, and the exit code."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmprefix.cli.inference.row_file import RowFile, StandardOutput
from mmprefix.cli.inference.rows import BadInputs, InputRow
from mmprefix.errors import InputError
from mmprefix.interrupt import Stopped, hold_stop_signals

Result = TypeVar("Result")
SOME_FAILED, NONE_DONE = 3, 2  # exit codes


@dataclass(frozen=True)
class RowReport(Generic[Result]):
    """Form of a verb's results: a row and its result → an object, and → the texts that are printed."""

    line: Callable[[InputRow, Result], dict[str, Any]]
    texts: Callable[[InputRow, Result], Sequence[str]]


class Progress:
    """Line on standard error that says how far a run is: rewritten on a terminal, otherwise a new one now and then."""

    def __init__(self, total: int, shown: bool, noun: str = "inputs") -> None:
        self.total, self.shown, self.noun, self.done, self.failed = total, shown, noun, 0, 0
        self._terminal, self._start = sys.stderr.isatty(), time.monotonic()
        self._every, self._last = (0.2 if self._terminal else 10.0), float("-inf") if self._terminal else self._start

    def step(self, failed: bool) -> None:
        """Count one input."""
        self.done, self.failed = self.done + 1, self.failed + failed
        moment = time.monotonic()
        if self.shown and (moment - self._last >= self._every or self.done == self.total):
            self._last = moment
            self._write()

    def say(self, text: str) -> None:
        """Print ``text`` in a line of its own."""
        sys.stderr.write(f"{self._blank()}mmprefix: {text}\n")

    def end(self) -> None:
        """Leave the last line where it is."""
        if self.shown and self._terminal and self.done:
            sys.stderr.write("\n")

    def _write(self) -> None:
        seconds = time.monotonic() - self._start
        rate = self.done / seconds if seconds > 0 else 0.0
        left = f", {(self.total - self.done) / rate:,.0f} s left" if rate and self.done < self.total else ""
        bad = f", {self.failed} could not be read" if self.failed else ""
        line = f"{self.done} of {self.total} {self.noun}{bad}, {rate:.1f} a second{left}"
        sys.stderr.write(f"\r{line:78}" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def _blank(self) -> str:
        return f"\r{'':78}\r" if self.shown and self._terminal else ""


def write_results(
    args: argparse.Namespace,
    output: RowFile | StandardOutput,
    rows: Iterable[tuple[InputRow, Result | InputError]],
    report: RowReport[Result],
    *,
    total: int,
    bad: BadInputs,
) -> int:
    """Write each of ``rows`` as it comes, and say what could not be read; ``bad`` are those known before.

    Returns 0; 3 where some inputs failed; 2 where all did. Raises InputError for the only input of a run.
    """
    progress = Progress(total, _shows_progress(args))
    alone, written = total + bad.count == 1, 0
    try:
        for line in bad.lines:
            progress.say(line)
        for row, result in rows:
            if isinstance(result, InputError):
                if alone:
                    raise result
                bad.add(_fault(row, result))
                progress.say(_fault(row, result))
            else:
                with hold_stop_signals():  # a row that is written is counted
                    output.write(report.line(row, result), report.texts(row, result))
                    written += 1
            progress.step(isinstance(result, InputError))
        progress.end()
    except Stopped as stop:
        progress.end()
        stop.advice = stop.advice or _advice(args, written, total)
        raise
    return _conclude(args, output, written, bad.count)


def _conclude(args: argparse.Namespace, output: RowFile | StandardOutput, written: int, bad: int) -> int:
    before = output.rows_before if isinstance(output, RowFile) else 0
    if args.out and (written or not bad):
        beside = f" beside {before} that were there" if before else ""
        sys.stdout.write(f"wrote {written} lines{beside}: {args.out}\n")
    if not bad:
        return 0
    done = written + before
    lead = f"{bad} of {written + bad} inputs" if done else f"none of {bad} inputs"
    verb = "could not be read; the others are done" if done else "could be read"
    sys.stderr.write(f"mmprefix: {lead} {verb}\n")
    return SOME_FAILED if done else NONE_DONE


def _fault(row: InputRow, error: InputError) -> str:
    """Message of ``error``, which names its row."""
    message = str(error)
    known = [row.id, *(item if isinstance(item, str) else item.path for item in row.inputs.values())]
    return message if any(name and name in message for name in known) else f"{row.id}: {message}"


def _advice(args: argparse.Namespace, written: int, total: int) -> str:
    if not args.out:
        return f"{written} of {total} inputs were printed; with --out FILE a second run goes on where the first stopped"
    return f"{written} of {total} inputs are in {Path(args.out)}; the same command goes on"


def _shows_progress(args: argparse.Namespace) -> bool:
    """True with ``--progress``, and on a terminal where no results are printed between the lines of progress."""
    return args.progress or (sys.stderr.isatty() and (bool(args.out) or not sys.stdout.isatty()))
