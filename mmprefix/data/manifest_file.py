"""Rows of a manifest file as they are written: JSON lines, or CSV and TSV with the names in the header."""

from __future__ import annotations

import ast
import codecs
import csv
import json
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError
from mmprefix.media.kinds import FILE_KINDS, KINDS

_TABLES = {".csv": ",", ".tsv": "\t"}
_SEPARATORS = ",;\t|"
TARGETS = ("captions", "caption", "target")
COLUMNS = frozenset({"id", *FILE_KINDS, *TARGETS, "prompt", "context", "user", "label", "split", "start", "end"})
"""Columns that mean something to every reader of a manifest; all others are kept as they are."""

csv.field_size_limit(1 << 30)  # characters of a cell; the library's own limit is 131072


class RowError(Exception):
    """Fault of one row; its message names the column and the value.

    ``file`` is the name of a missing file as the row has it, and ``message`` what is wrong without that name, so that
    rows with the same fault can be counted.
    """

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file


def manifest_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of every row of ``file``; a RowError as value where a line is no row."""
    separator = _TABLES.get(file.suffix.lower())
    try:
        with file.open(encoding=_encoding(file), newline="") as stream:
            yield from _objects(stream) if separator is None else _table(stream, separator)
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{file}: the manifest cannot be read: {reason}") from error


def table_rows(
    file: Path, known: Collection[str] = COLUMNS, names: Sequence[str] | None = None
) -> Iterator[tuple[int, Any]]:
    """Line number and cells of every row of a table, whatever its ending; a RowError where a line is no row.

    ``known`` names tell the separator. ``names`` are the columns of a table without header.
    """
    try:
        with file.open(encoding=_encoding(file), newline="") as stream:
            yield from _table(stream, _TABLES.get(file.suffix.lower(), ","), known, names)
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{file}: the table cannot be read: {reason}") from error


def raw_rows(path: str | Path) -> dict[int, dict[str, Any]]:
    """Rows of the manifest at ``path`` by line number, as they are written, without the lines that are no rows."""
    return {line: row for line, row in manifest_rows(Path(path)) if isinstance(row, dict)}


def splits(path: str | Path) -> set[str]:
    """Values of the field ``split`` in the manifest at ``path``."""
    return {str(row["split"]) for _, row in manifest_rows(Path(path)) if isinstance(row, dict) and row.get("split")}


def _encoding(file: Path) -> str:
    """UTF-16 where the file begins with its mark, as spreadsheets write it; otherwise UTF-8, with a mark or without."""
    with file.open("rb") as stream:
        return "utf-16" if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _objects(stream: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            if "\\u" in text:  # an escape may stand for half a character, which no file or tokenizer can hold
                json.dumps(row, ensure_ascii=False).encode()
            yield line, row
        except UnicodeEncodeError as error:
            yield line, RowError(f"holds half a character ({error.object[error.start]!r}); write the whole one")
        except (ValueError, RecursionError) as error:
            yield line, RowError(f"not JSON: {error}")


class _Lines:
    """Lines of a table, counted; ``own`` are those since the last ``clear``, which make up one row."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines, self.own, self.number = lines, list[str](), 0

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.own.append(line)
            self.number += 1
            yield line

    def clear(self) -> int:
        """Number of the next line."""
        self.own = []
        return self.number + 1


def _table(
    stream: Iterator[str], separator: str, known: Collection[str] = COLUMNS, header: Sequence[str] | None = None
) -> Iterator[tuple[int, Any]]:
    first = next(stream, "")
    separator = _separator(first, separator, known if header is None else None)
    lines = _Lines(chain([first], stream))
    cells = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    names = [_column(name) for name in next(cells, [])] if header is None else [*header]
    while True:
        line = lines.clear()
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, RowError(f"cannot be read as a table's row: {error}")
            continue
        if len(lines.own) > 1 and _is_open(lines.own, separator):
            yield line, RowError(f"a quote opens here and never ends: {len(lines.own)} lines would be one row")
        elif len(row) > len(names):
            yield line, RowError(f"{len(names)} names in the header, but more cells in the row")
        elif row:
            yield line, _cells(names, row)


def _cells(names: list[str], row: list[str]) -> dict[str, Any]:
    """Row by column name, without empty cells; several columns ``caption`` are a list of captions."""
    pairs = [(name, text) for name, text in zip(names, row, strict=False) if text]
    cells = {name: _cell(name, text) for name, text in pairs}
    if names.count("caption") > 1 and "captions" not in cells:
        cells.pop("caption", None)
        cells["captions"] = [text for name, text in pairs if name == "caption"]
    return cells


def _separator(first: str, usual: str, known: Collection[str] | None) -> str:
    """Separator of a table: the one by which most names of its ``first`` line are ``known``, else ``usual``.

    ``known`` None: the line is no header; it is the separator of which it has most.
    """

    def count(separator: str) -> int:
        names = next(csv.reader([first], delimiter=separator), [])
        return len(names) > 1 if known is None else sum(name.strip().lower() in known for name in names)

    return max([usual, *_SEPARATORS], key=count)


def _column(name: str) -> str:
    """Name of a column without spaces around it; known ones in small letters, as people write ``Caption``."""
    name = name.strip()
    return name.lower() if name.lower() in COLUMNS else name


def _is_open(lines: list[str], separator: str) -> bool:
    """True if a quote of a row of several ``lines`` is never closed."""
    try:
        list(csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        return "end of data" in str(error)
    return False


def _cell(key: str, text: str) -> Any:
    """A cell as JSON would have it: numbers for times, a list for captions, signals, the pictures of a video."""
    listed = key in FILE_KINDS and KINDS[key].lists and text.lstrip().startswith("[")
    if key in ("start", "end", "captions") or listed:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return (_python_list(text) or [text]) if key == "captions" else text
        return value if key != "captions" or isinstance(value, list) else [text]
    return text


def _python_list(text: str) -> list[str] | None:
    """Texts of a Python list, as pandas writes one into a cell: ``['a dog', 'a cat']``."""
    if not text.strip().startswith("["):
        return None
    try:
        values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else None
