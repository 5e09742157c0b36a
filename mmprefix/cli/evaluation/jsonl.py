"""JSON lines read with their line numbers, and tables of figures written with aligned columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError


def read_jsonl(path: str | Path) -> list[tuple[int, Any]]:
    """Line number and value of every line that is not blank.

    Raises InputError with file and line for the first line that is not JSON, and for a file that is not UTF-8 text.
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
            lines.append((number, _value(line, f"{path}:{number}")))
    return lines


def _value(line: str, location: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{location}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists within lists without end
        raise InputError(f"{location}: not JSON ({error})") from None


def identifier(value: Any, location: str) -> str:
    """Id of the line at ``location`` (file:line) as a string. Raises InputError unless it is a text or an integer."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"{location}: id must be a string or a whole number, not {json.dumps(value)}")
    return str(value)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Text of ``rows``; each column but the last is padded to its longest cell."""
    columns = max(map(len, rows))
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(columns)]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "".join(line.rstrip() + "\n" for line in padded)
