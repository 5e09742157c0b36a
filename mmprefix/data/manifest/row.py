"""One row of a manifest → its fields, checked: texts, times, files that exist, captions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmprefix.data.manifest.example import Example, InputRef
from mmprefix.data.manifest_file import COLUMNS, TARGETS, RowError
from mmprefix.media.kinds import FILE_KINDS, KINDS
from mmprefix.media.source import missing

INPUTS = FILE_KINDS
TEXTS = ("prompt", "user", "label", "split")
_ALONE = ("context", "transcript")  # texts that a row may consist of


def row_mapping(row: Any) -> dict[str, Any]:
    """Fields of a row that hold something. Raises RowError for what is no row."""
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"expected a JSON object, found {_kind(row)}")
    return {key: value for key, value in row.items() if value is not None}


def example_of(row: dict[str, Any], inputs: dict[str, InputRef], file: Path, line: int) -> Example:
    """Example of a ``row`` whose ``inputs`` were read. Raises RowError for a field that cannot be used."""
    texts = {key: _string(row, key) if key == "prompt" else _label(row, key) for key in TEXTS}
    contexts = _contexts(row)
    return Example(
        id=read_id(row, line),
        inputs=inputs,
        captions=read_captions(row),
        prompt=texts["prompt"],
        context=contexts[0] if contexts else "",
        contexts=contexts[1:],
        label=texts["label"],
        user=texts["user"],
        split=texts["split"],
        file=str(file),
        line=line,
        extra={key: value for key, value in row.items() if key not in COLUMNS},
    )


def read_id(row: dict[str, Any], line: int) -> str:
    """Id of a row: its own, or its line number. Raises RowError for one that is no text or number."""
    value = row.get("id", line)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RowError(f"id must be a text, found {_kind(value)}")
    return str(value)


def read_inputs(
    row: dict[str, Any], folder: Path, texts: Sequence[str] | None = (), *, needed: bool = True
) -> dict[str, InputRef]:
    """Inputs of a row by column, their files sought in ``folder``; the columns ``texts`` hold texts.

    Raises RowError where there is none, if one is ``needed``; with ``texts`` None, where the row holds nothing but its
    id and captions.
    """
    start, end = _seconds(row, "start"), _seconds(row, "end")
    if start is not None and end is not None and end <= start:
        raise RowError(f"start {start} and end {end}: the end must come after the start")
    named = [key for key in INPUTS if isinstance(row.get(key), list) or _string(row, key) is not None]
    words = read_texts(row, texts or ())
    alone = _ALONE if texts is not None else ("prompt", *(row.keys() - COLUMNS))
    if needed and not named and not any(row.get(key) for key in (*_ALONE, *alone)) and not words:
        names = " or ".join(dict.fromkeys((*_ALONE, *(texts or ()))))
        what = f"one of {', '.join(INPUTS)} must name a file, or a {names} hold a text"
        raise RowError(f"no input: {what}; this row has {', '.join(row) or 'nothing'} (mmprefix prepare reads more)")
    return {key: _input(key, row[key], folder, InputRef("", start or 0.0, end)) for key in named} | words


def read_texts(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, InputRef]:
    """Inputs in those ``columns`` of a row that hold a text, or a list of texts. Raises RowError for anything else."""
    return {key: InputRef("", texts=values) for key in columns if (values := _texts(key, row.get(key)))}


def _input(key: str, value: str | list[Any], folder: Path, span: InputRef) -> InputRef:
    """The input in column ``key`` with the times of ``span``; RowError where its files are not there."""
    lists = KINDS[key].lists
    if isinstance(value, list) and lists == "numbers":
        return InputRef("", numbers=_numbers(key, value))
    if isinstance(value, list) and lists == "files":
        names = _file_names(key, value)
        paths = tuple(str(folder / name) for name in names)
        reasons = ((missing(path), name) for path, name in zip(paths, names, strict=True))
        reason, name = next((pair for pair in reasons if pair[0]), (None, ""))
        item = replace(span, path=paths[0], pictures=paths)
    elif isinstance(value, str):
        item, name = replace(span, path=str(folder / value)), value
        reason = KINDS[key].missing(item.path) if value else "the name of the file is empty"
    else:
        raise RowError(f"{key} must be a text, found {_kind(value)}")
    if reason:
        raise RowError(f"{key}: {reason}", name)
    return item


def _file_names(key: str, values: list[Any]) -> list[str]:
    for value in values:
        if not isinstance(value, str) or not value:
            raise RowError(f"{key} must be a list of file names, found {_kind(value)} in it")
    if not values:
        raise RowError(f"{key} must be a list of file names, found none")
    return values


def _texts(key: str, value: Any) -> tuple[str, ...]:
    """Text, or texts, in the column ``key``; none where it is missing or empty. Raises RowError for anything else."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    for text in values:
        if not isinstance(text, str):
            raise RowError(f"{key} must be a text or a list of texts, found {_kind(text)}")
    return tuple(text.strip() for text in values if text.strip())


def _numbers(key: str, values: list[Any]) -> tuple[float, ...]:
    for value in values:
        if not _is_finite(value):
            raise RowError(f"{key} must be finite numbers, found {_kind(value)}")
    if not values:
        raise RowError(f"{key} must be finite numbers, found none")
    return tuple(float(value) for value in values)


def _is_finite(value: Any) -> bool:
    """True for a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _contexts(row: dict[str, Any]) -> tuple[str, ...]:
    if not isinstance(row.get("context"), list):
        text = _string(row, "context")
        return (text,) if text else ()
    for value in row["context"]:
        if not isinstance(value, str):
            raise RowError(f"context must be a text or a list of texts, found {_kind(value)} in it")
    return tuple(row["context"])


def read_captions(row: dict[str, Any]) -> tuple[str, ...]:
    """Captions of a row, perhaps none. Raises RowError for one that is no text, or empty."""
    names = [key for key in TARGETS if key in row]
    if len(names) > 1:
        raise RowError(f"{' and '.join(names)} are both given; keep one")
    values = row.get("captions", [row[key] for key in names])
    if not isinstance(values, list):
        raise RowError(f"captions must be a list of texts, found {_kind(values)}")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise RowError(f"{names[0]}: caption {number} must be a text, found {_kind(value)}")
        if not value.strip():
            raise RowError(f"{names[0]}: caption {number} is empty")
    return tuple(value.strip() for value in values)


def _string(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{key} must be a text, found {_kind(value)}")
    return value


def _label(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if isinstance(value, list | dict):
        raise RowError(f"{key} must be a text or a number, found {_kind(value)}")
    return None if value is None else field_text(value)


def _seconds(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if not _is_finite(value) or value < 0:
        raise RowError(f"{key} must be a number of seconds from 0 on, found {value!r}")
    return float(value)


def field_text(value: Any) -> str:
    """Field as a text; what is none as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _kind(value: Any) -> str:
    names = {str: "a text", bool: "a truth value", list: "a list", dict: "an object", type(None): "null"}
    return f"{names.get(type(value), 'a number')} ({json.dumps(value)[:40]})"
