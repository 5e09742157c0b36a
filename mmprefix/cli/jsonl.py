"""Lines of JSON, read with the places where they stand, and rows of figures, written so that columns are aligned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError


def read_jsonl(path: str | Path) -> list[tuple[int, Any]]:
    """Number and value of every line that is not blank.

    Raises InputError with file and line for the first that is not JSON, or when the file cannot be read as UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    lines: list[tuple[int, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                lines.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from None
    return lines


def identifier(value: Any, place: str) -> str:
    """The id of a line as a string; raises InputError that begins with ``place`` when it is neither text nor number."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"{place}: id must be a string or a whole number, not {json.dumps(value)}")
    return str(value)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as text; each column but the last is as wide as its longest cell."""
    columns = max(map(len, rows))
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(columns)]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "".join(line.rstrip() + "\n" for line in padded)
