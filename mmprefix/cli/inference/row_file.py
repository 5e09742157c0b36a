"""Results as they come, one line a row: to a file that a later run goes on with, or to standard output.

A file is JSON lines, a table (csv, tsv) or text with a tab behind each name, by ``--format`` or its suffix. Beside it
lies ``.NAME.options.json``, the options that made its rows: rows of other options are not put into one file. Each row
is one write of one line, so that a killed process leaves whole lines and at most one that is cut off.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmprefix.atomic import disk_errors_as_input_errors, write_atomically
from mmprefix.errors import InputError

TABLES = ("csv", "tsv")
FORMATS = ("jsonl", *TABLES, "txt")


class RowWriter:
    """Lines of rows in one format. ``columns`` are those of a table, the first of them names the row."""

    def __init__(self, form: str, columns: Sequence[str]) -> None:
        self.form, self.columns = form, tuple(columns)

    @property
    def header(self) -> str:
        """First line of a table, empty for the other formats."""
        return self._cells(self.columns) if self.form in TABLES else ""

    def line(self, row: Mapping[str, Any], texts: Sequence[str]) -> str:
        """Line of one row; ``texts`` is its plain form, which a text file holds behind the name."""
        if self.form == "jsonl":
            return json.dumps(row, ensure_ascii=False) + "\n"
        if self.form == "txt":
            return "\t".join(map(_one_line, (row_name(row), *texts))) + "\n"
        name = {self.columns[0]: row_name(row)}
        return self._cells([_cell({**row, **name}.get(column)) for column in self.columns])

    def name_in(self, line: str) -> str:
        """Name of the row on a line of the file. Raises ValueError for a line that is no row."""
        if self.form == "jsonl":
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
            return _key(row_name(row))
        if self.form == "txt":
            name, tab, _ = line.partition("\t")
            if not tab:
                raise ValueError("no tab")
            return name
        cells = next(csv.reader([line], delimiter=self._separator))
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells")
        return cells[0]

    def key(self, name: str) -> str:
        """``name`` as it reads in the file."""
        return _key(name) if self.form == "jsonl" else _one_line(name)

    @property
    def _separator(self) -> str:
        return "\t" if self.form == "tsv" else ","

    def _cells(self, cells: Sequence[str]) -> str:
        stream = io.StringIO()
        csv.writer(stream, delimiter=self._separator, lineterminator="\n").writerow(cells)
        return stream.getvalue()


class RowFile:
    """File of results. ``done`` counts the rows of an earlier run by name, ``rows_before`` all of them."""

    def __init__(self, path: Path, writer: RowWriter) -> None:
        self.path, self.writer = path, writer
        self.done, self.written, self.rows_before = Counter[str](), 0, 0
        self._descriptor = -1

    @property
    def memory(self) -> Path:
        """File beside this one that holds the options of its rows."""
        return self.path.with_name(f".{self.path.name}.options.json")

    def begin(self, options: Mapping[str, Any], overwrite: bool) -> None:
        """Open the file, anew or behind the rows that are there.

        Raises InputError for rows of other options, for a file that this command has not begun, and for one that
        another process is writing.
        """
        plain = not self.path.exists() or self.path.is_file()  # a pipe or a device has no rows to go on with
        if plain and not overwrite and self.path.exists() and self.path.stat().st_size:
            require_same_options(self.path, self.memory, options)
        with disk_errors_as_input_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        _lock(self._descriptor, self.path)
        if plain and overwrite:
            os.ftruncate(self._descriptor, 0)  # before its options change: rows of others never stand beside new ones
        if plain:
            text = json.dumps(options, ensure_ascii=False, indent=1) + "\n"
            write_atomically(self.memory, lambda fresh: fresh.write_text(text, encoding="utf-8"))
            self._read_rows()
        if not self.done and self.writer.header:
            self._append(self.writer.header)

    def is_done(self, name: str) -> bool:
        """True, once for each such row in the file, if a row of this name is there."""
        key = self.writer.key(name)
        if self.done[key] < 1:
            return False
        self.done[key] -= 1
        return True

    def write(self, row: Mapping[str, Any], texts: Sequence[str]) -> None:
        """Append a row; ``texts`` is its plain form."""
        self._append(self.writer.line(row, texts))
        self.written += 1

    def close(self) -> None:
        """Close the file; one without rows is removed."""
        if self._descriptor < 0:
            return
        regular = self.path.is_file()
        if regular:
            os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        if regular and not self.written and not self.rows_before:
            self.path.unlink(missing_ok=True)
            self.memory.unlink(missing_ok=True)

    def _read_rows(self) -> None:
        """Count the rows that are there; a last line that was cut off is cut away."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.ftruncate(self._descriptor, len(whole))
        lines = whole.decode("utf-8", "replace").split("\n")[:-1]
        for number, line in enumerate(lines, start=1):
            if number == 1 and self.writer.header:
                continue
            try:
                self.done[self.writer.name_in(line)] += 1
            except (ValueError, StopIteration, csv.Error) as error:
                raise InputError(f"{self.path}:{number}: is no row that this command writes; {ADVICE}") from error
        self.rows_before = self.done.total()
        if self.writer.header and not self.rows_before:
            os.ftruncate(self._descriptor, 0)

    def _append(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))  # a name may hold bytes that are no text
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            kept = self.rows_before + self.written
            advice = f"{kept} rows are kept, and the same command goes on"
            raise InputError(f"{self.path}: could not be written ({error.strerror}); {advice}") from error


class StandardOutput:
    """Rows printed as they come: in a format, or as ``NAME: TEXT``, a line each, whatever lines a text has."""

    def __init__(self, writer: RowWriter | None) -> None:
        self.writer = writer
        if writer is not None:
            self._print(writer.header)

    def is_done(self, name: str) -> bool:
        """False: nothing is known of what was printed before."""
        return False

    def write(self, row: Mapping[str, Any], texts: Sequence[str]) -> None:
        """Print a row at once."""
        lines = (" ".join(part for part in text.splitlines() if part.strip()) for text in texts)
        plain = "".join(f"{row_name(row)}: {line}\n" for line in lines)
        self._print(plain if self.writer is None else self.writer.line(row, texts))

    def _print(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def open_row_file(file: RowFile, options: Mapping[str, Any], overwrite: bool) -> Iterator[RowFile]:
    """``file``, begun or gone on with, and closed at the end."""
    try:
        file.begin(options, overwrite)
        yield file
    finally:
        file.close()


def row_name(row: Mapping[str, Any]) -> str:
    """Name of a result's row: its id, or its file."""
    return str(row.get("id", row.get("file", "")))


ADVICE = "--overwrite writes the file anew, another --out keeps it"


def require_same_options(file: Path, memory: Path, options: Mapping[str, Any]) -> None:
    """Refuse ``file`` where its rows were made by other options than ``options``, or by nobody knows which.

    ``memory`` is the file beside it that holds the options. Raises InputError that names the first that differs.
    """
    try:
        before = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise InputError(f"{file}: is there already, and which options made it is not known; {ADVICE}")
    for name in sorted(before.keys() | options.keys()):
        old, new = before.get(name), options.get(name)
        if old != new:
            shown = "a model of other tensors" if name == "model" else f"{name} {_show(old)}, now {_show(new)}"
            raise InputError(f"{file}: was begun with {shown}; {ADVICE}")


def _show(value: Any) -> str:
    return "left out" if value is None or value is False else "given" if value is True else str(value)


def _lock(descriptor: int, path: Path) -> None:
    """Refuse a file that another process is writing, where the system can tell."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path}: another process is writing it; wait for it, or give another --out") from None
    except OSError:  # a disk without locks
        return


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return _one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _one_line(text: str) -> str:
    """``text`` in one line and one cell: what breaks a line is written as Python writes it."""
    broken = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return _key("".join(broken.get(character, character) for character in text))


def _key(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
