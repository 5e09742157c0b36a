"""Rows of a manifest file as they are written: JSON lines, or CSV and TSV with the names in the header."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError
from mmprefix.media.kinds import KINDS

_TABLES = {".csv": ",", ".tsv": "\t"}


class RowError(Exception):
    """Fault of one row; its message names the column and the value."""


def manifest_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of every row of ``file``; a RowError as value where a line is no row."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield from _table(stream, _TABLES[file.suffix]) if file.suffix in _TABLES else _objects(stream)
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{file}: the manifest cannot be read: {reason}") from error


def raw_rows(path: str | Path) -> dict[int, dict[str, Any]]:
    """Rows of the manifest at ``path`` by line number, as they are written, without the lines that are no rows."""
    return {line: row for line, row in manifest_rows(Path(path)) if isinstance(row, dict)}


def splits(path: str | Path) -> set[str]:
    """Values of the field ``split`` in the manifest at ``path``."""
    return {str(row["split"]) for _, row in manifest_rows(Path(path)) if isinstance(row, dict) and row.get("split")}


def _objects(stream: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(stream, start=1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except ValueError as error:
                yield line, RowError(f"not JSON: {error}")


def _table(stream: Iterator[str], delimiter: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(stream, delimiter=delimiter)
    if reader.fieldnames is None:
        return
    before = reader.line_num  # a quoted cell may hold line breaks: the first line counts
    for row in reader:
        line, before = before + 1, reader.line_num
        if None in row:
            yield line, RowError(f"{len(reader.fieldnames)} names in the header, but more cells in the row")
        else:
            yield line, {key: _cell(key, text) for key, text in row.items() if text}


def _cell(key: str, text: str) -> Any:
    """A cell as JSON would have it: numbers for times, a list for captions, signals, the pictures of a video."""
    listed = key in KINDS and KINDS[key].lists and text.lstrip().startswith("[")
    if key in ("start", "end", "captions") or listed:
        try:
            value = json.loads(text)
        except ValueError:
            return [text] if key == "captions" else text
        return value if key != "captions" or isinstance(value, list) else [text]
    return text
