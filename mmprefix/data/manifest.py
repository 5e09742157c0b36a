"""Manifest → rows and their faults: JSON lines, or CSV with the same names as header.

A row has ``id``, one or more of ``image``, ``audio``, ``video``, ``signals`` (paths relative to the manifest,
``archive.zip::member`` inside a zip; a video may be a folder or a list of pictures, signals a list of numbers),
``captions`` (a list; in CSV a JSON list) or one ``caption`` or ``target``, and optionally ``prompt``, ``context`` (a
text, or a list of which training draws one), ``user``, ``label``, ``split``, ``start`` and ``end`` (seconds). A row of
text alone needs no input: it has a ``context`` or a ``transcript``. Unknown names are kept in ``extra``. Reading
decodes nothing: it checks types, ids, texts and whether the files exist.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmprefix.data.manifest_file import RowError, manifest_rows
from mmprefix.media.kinds import KINDS
from mmprefix.media.source import FrameSequence, Source, missing

INPUTS = tuple(KINDS)
TEXTS = ("prompt", "user", "label", "split")
_KNOWN = frozenset({"id", *INPUTS, *TEXTS, "context", "captions", "caption", "target", "start", "end"})
_ALONE = ("context", "transcript")  # texts that a row may consist of


@dataclass(frozen=True)
class InputRef:
    """A file, or a part of it from ``start`` to ``end`` seconds (None: to its end)."""

    path: str  # of several pictures the first, of numbers ""
    start: float = 0.0
    end: float | None = None
    numbers: tuple[float, ...] | None = None  # instead of a file
    pictures: tuple[str, ...] | None = None  # paths of the frames of a video, in order

    @property
    def source(self) -> Source:
        """Input of an encoder's ``preprocess``: the file's path, the frames of a video, or the numbers."""
        if self.pictures is not None:
            return FrameSequence(self.pictures)
        return self.path if self.numbers is None else self.numbers


@dataclass(frozen=True)
class RowFault:
    """Fault of one line of a manifest."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Example:
    """Good row of a manifest. ``prompt`` is None where the row has none; ``captions`` may be empty."""

    id: str
    inputs: Mapping[str, InputRef]
    captions: tuple[str, ...] = ()
    prompt: str | None = None
    context: str = ""
    contexts: tuple[str, ...] = ()  # further texts, of which training may draw the context
    label: str | None = None
    user: str | None = None
    split: str | None = None
    file: str = ""
    line: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """Files of the row, and last its line in the manifest."""
        return [*(ref.path for ref in self.inputs.values() if ref.path), f"{self.file}:{self.line}"]

    def fault(self, message: str) -> RowFault:
        """Fault of this row with this ``message``."""
        return RowFault(self.file, self.line, message)


def read_manifest(
    path: str | Path, split: str | None = None, where: Mapping[str, Any] | None = None
) -> tuple[list[Example], list[RowFault]]:
    """Good rows of the manifest at ``path`` in its order, and the faults of the others.

    ``split`` keeps the rows of one split, ``where`` those whose fields equal its values (numbers and truth values are
    compared as they are written in JSON). An id belongs to one row of the whole file; a row without id has its line
    number as id. A manifest without rows has one fault. Raises InputError when ``path`` cannot be read at all.
    """
    file, examples, faults = Path(path), list[Example](), list[RowFault]()
    wanted = {**({} if split is None else {"split": split}), **(where or {})}
    seen: dict[str, int] = {}
    rows = 0
    for line, row in manifest_rows(file):
        rows += 1
        try:
            row = _mapping(row)
            name = _identifier(row, line)
            twin = seen.setdefault(name, line)
            if any(_text(row.get(key)) != _text(value) for key, value in wanted.items()):
                continue
            if twin != line:
                raise RowError(f"id {name!r} is already used in line {twin}")
            examples.append(_example(row, name, file, line))
        except RowError as error:
            faults.append(RowFault(str(file), line, str(error)))
    if not rows:
        faults.append(RowFault(str(file), 1, "the manifest is empty"))
    elif not examples and not faults:
        condition = " and ".join(f"{key} = {_text(value)}" for key, value in wanted.items())
        faults.append(RowFault(str(file), 1, f"no row has {condition}"))
    return examples, faults


def listing(faults: Collection[RowFault], most: int = 20) -> str:
    """One line a fault, at most ``most`` of them, and a last line with the number of the others."""
    lines = [str(fault) for fault in list(faults)[:most]]
    return "\n".join(lines + ([f"... and {len(faults) - most} more"] if len(faults) > most else []))


# ------------------------------------------------------------------------------------------------------ one row


def _mapping(row: Any) -> dict[str, Any]:
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"expected a JSON object, found {_kind(row)}")
    return {key: value for key, value in row.items() if value is not None}


def _example(row: dict[str, Any], name: str, file: Path, line: int) -> Example:
    texts = {key: _string(row, key) if key == "prompt" else _label(row, key) for key in TEXTS}
    contexts = _contexts(row)
    return Example(
        id=name,
        inputs=_inputs(row, file.parent),
        captions=_captions(row),
        prompt=texts["prompt"],
        context=contexts[0] if contexts else "",
        contexts=contexts[1:],
        label=texts["label"],
        user=texts["user"],
        split=texts["split"],
        file=str(file),
        line=line,
        extra={key: value for key, value in row.items() if key not in _KNOWN},
    )


def _identifier(row: dict[str, Any], line: int) -> str:
    value = row.get("id", line)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RowError(f"id must be a text, found {_kind(value)}")
    return str(value)


def _inputs(row: dict[str, Any], folder: Path) -> dict[str, InputRef]:
    start, end = _seconds(row, "start"), _seconds(row, "end")
    if start is not None and end is not None and end <= start:
        raise RowError(f"start {start} and end {end}: the end must come after the start")
    named = [key for key in INPUTS if isinstance(row.get(key), list) or _string(row, key) is not None]
    if not named and not any(row.get(key) for key in _ALONE):
        texts = " or ".join(_ALONE)
        raise RowError(f"no input: one of {', '.join(INPUTS)} must name a file, or a {texts} hold a text")
    return {key: _input(key, row[key], folder, InputRef("", start or 0.0, end)) for key in named}


def _input(key: str, value: str | list[Any], folder: Path, span: InputRef) -> InputRef:
    """The input in column ``key`` with the times of ``span``; RowError where its files are not there."""
    lists = KINDS[key].lists
    if isinstance(value, list) and lists == "numbers":
        return InputRef("", numbers=_numbers(key, value))
    if isinstance(value, list) and lists == "files":
        paths = tuple(str(folder / name) for name in _file_names(key, value))
        reason = next((reason for path in paths if (reason := missing(path))), None)
        item = replace(span, path=paths[0], pictures=paths)
    elif isinstance(value, str):
        item = replace(span, path=str(folder / value))
        reason = KINDS[key].missing(item.path) if value else "the name of the file is empty"
    else:
        raise RowError(f"{key} must be a text, found {_kind(value)}")
    if reason:
        raise RowError(f"{key}: {reason}")
    return item


def _file_names(key: str, values: list[Any]) -> list[str]:
    for value in values:
        if not isinstance(value, str) or not value:
            raise RowError(f"{key} must be a list of file names, found {_kind(value)} in it")
    if not values:
        raise RowError(f"{key} must be a list of file names, found none")
    return values


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


def _captions(row: dict[str, Any]) -> tuple[str, ...]:
    names = [key for key in ("captions", "caption", "target") if key in row]
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
    return None if value is None else _text(value)


def _seconds(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if not _is_finite(value) or value < 0:
        raise RowError(f"{key} must be a number of seconds from 0 on, found {value!r}")
    return float(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _kind(value: Any) -> str:
    names = {str: "a text", bool: "a truth value", list: "a list", dict: "an object", type(None): "null"}
    return f"{names.get(type(value), 'a number')} ({json.dumps(value)[:40]})"
