"""Files with what users wrote: one user's texts, and manifests of many users."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from mmprefix.cli.evaluation.jsonl import identifier, read_jsonl
from mmprefix.errors import InputError

_LINE_ENDS = "\r\n|\r|\n"  # no other mark ends a line of a text
FIELDS = ("history", "captions", "caption", "text")  # of a row; the first that is there is read


def read_manifest(path: str) -> dict[str, list[str]]:
    """Texts by user, of lines {"user": "u07", "history": ["a text", ...]}. Raises InputError by file and line."""
    histories: dict[str, list[str]] = {}
    for number, row in read_jsonl(path):
        location = f"{path}:{number}"
        if not isinstance(row, dict) or "user" not in row:
            raise InputError(f'{location}: a row is {{"user": "u07", "history": ["a text", ...]}}')
        user = identifier(row["user"], location)
        if user in histories:
            raise InputError(f"{location}: user {user!r} has a row already")
        histories[user] = _texts_of(row, location)
    if not histories:
        raise InputError(f"{path}: has no user")
    return histories


def read_history(path: str, option: str = "--history") -> list[str]:
    """Texts of one user: a line each, or the rows of a .jsonl; ``-`` is standard input.

    Raises InputError for a file without any: a user without texts is added without a file, and an empty one, such as a
    copy that failed, replaces nothing.
    """
    texts = [text for text in _read(path, option) if text.strip()]
    if not texts:
        raise InputError(f"{option} {path}: holds no text; give one a line, or leave it out")
    return texts


def _read(path: str, option: str) -> list[str]:
    if Path(path).suffix == ".jsonl":
        return [text for number, row in read_jsonl(path) for text in _texts_of(row, f"{path}:{number}")]
    name = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{option} {path}: line {line} of {name} is not UTF-8") from None
    return [line for line in map(str.strip, re.split(_LINE_ENDS, text)) if line]


def _texts_of(row: Any, location: str) -> list[str]:
    """Texts of a row: a text, or an object with one of the fields that hold texts."""
    if isinstance(row, dict):
        fields = [field for field in FIELDS if field in row]
        if not fields:
            raise InputError(f"{location}: none of {', '.join(FIELDS)} in the row")
        row = row[fields[0]]
    texts = [row] if isinstance(row, str) else row
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{location}: a text or a list of texts is needed, not {json.dumps(row)[:80]}")
    return texts
