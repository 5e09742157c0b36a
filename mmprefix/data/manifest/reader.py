"""Reading of a whole manifest: rows that are one input, ids that occur twice, rows of one split."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mmprefix.data.manifest.example import Example
from mmprefix.data.manifest.faults import RowFault
from mmprefix.data.manifest.row import TEXTS, example_of, field_text, read_captions, read_id, read_inputs, row_mapping
from mmprefix.data.manifest_file import TARGETS, RowError, manifest_rows
from mmprefix.media.kinds import FILE_KINDS

_SAME = ("id", *FILE_KINDS, "start", "end", *TEXTS, "context")  # in which the rows of one input agree


def read_manifest(
    path: str | Path,
    split: str | None = None,
    where: Mapping[str, Any] | None = None,
    *,
    media_root: str | Path | None = None,
    apart: Sequence[str] | None = (),
    texts: Sequence[str] | None = (),
    captions_alone: bool = False,
) -> tuple[list[Example], list[RowFault]]:
    """Good rows of the manifest at ``path`` in its order, and the faults of the others.

    ``split`` keeps the rows of one split, ``where`` those whose fields equal its values (numbers and truth values are
    compared as they are written in JSON). Files are sought in the folder ``media_root``; None: in the manifest's own.
    Rows with captions that agree in id (or have none), inputs, times, texts and the columns ``apart`` are one example,
    at the place of the first of them; with ``apart`` None each row is its own. Otherwise an id belongs to one row of
    the whole file. The columns ``texts`` are inputs too, a text each or a list of them; None: they are not known, and a
    row may consist of any. With ``captions_alone`` a row needs no input. Without id the line number is the id. A
    manifest without rows has one fault. Raises InputError when ``path`` cannot be read at all.
    """
    file = Path(path)
    reader = _Reader(file, Path(media_root) if media_root else file.parent, apart, texts, needed=not captions_alone)
    wanted = {**({} if split is None else {"split": split}), **(where or {})}
    faults: list[RowFault] = []
    rows = 0
    for line, row in manifest_rows(file):
        rows += 1
        try:
            reader.read(line, row_mapping(row), wanted)
        except RowError as error:
            faults.append(RowFault(str(file), line, str(error), error.file))
    examples = reader.examples()
    if not rows:
        faults.append(RowFault(str(file), 1, "the manifest is empty"))
    elif not examples and not faults:
        condition = " and ".join(f"{key} = {field_text(value)}" for key, value in wanted.items())
        faults.append(RowFault(str(file), 1, f"no row has {condition}"))
    return examples, faults


class _Reader:
    """Examples of one manifest; rows that name the same input become one."""

    def __init__(
        self, file: Path, folder: Path, apart: Sequence[str] | None, texts: Sequence[str] | None, *, needed: bool
    ) -> None:
        self.file, self.folder, self.texts, self.needed = file, folder, texts, needed
        self.same = (
            None if apart is None else {*_SAME, *apart, *(texts or ())}
        )  # columns in which the rows of one input agree
        self._ids: dict[str, tuple[int, bytes | None]] = {}
        self._inputs: dict[bytes, int | RowError] = {}  # what its rows agree in → number of the example, or its fault
        self._examples: list[Example] = []
        self._more: dict[int, list[tuple[int, str]]] = {}  # number of an example → lines and captions of further rows

    def read(self, line: int, row: dict[str, Any], wanted: Mapping[str, Any]) -> None:
        """Add ``row`` where its fields have the ``wanted`` values; raises RowError for a bad one."""
        name, key = read_id(row, line), self._key(row)
        twin, twin_key = self._ids.setdefault(name, (line, key))
        if any(field_text(row.get(column)) != field_text(value) for column, value in wanted.items()):
            return
        if twin != line and (key is None or key != twin_key):
            raise RowError(f"id {name!r} is already used in line {twin}{self._difference(row, line, twin)}")
        first = None if key is None else self._inputs.get(key)
        if isinstance(first, RowError):
            raise first
        if first is not None:
            self._more.setdefault(first, []).extend((line, caption) for caption in read_captions(row))
            return
        try:
            inputs = read_inputs(row, self.folder, self.texts, needed=self.needed)
        except RowError as error:
            self._inputs.update({} if key is None else {key: error})
            raise
        self._examples.append(example_of(row, inputs, self.file, line))
        self._inputs.update({} if key is None else {key: len(self._examples) - 1})

    def examples(self) -> list[Example]:
        """All good rows, in the order of the manifest."""
        for number, more in self._more.items():
            first = self._examples[number]
            lines = (*[first.line] * len(first.captions), *(line for line, _ in more))
            captions = (*first.captions, *(caption for _, caption in more))
            self._examples[number] = replace(first, captions=captions, lines=lines)
        self._more = {}
        return self._examples

    def _key(self, row: dict[str, Any]) -> bytes | None:
        """Hash of the fields in which all rows of an input agree; None for a row of its own: without caption."""
        if self.same is None or not any(row.get(name) for name in TARGETS):
            return None
        fields = sorted((name, row[name]) for name in row.keys() & self.same)
        return blake2b(repr(fields).encode(), digest_size=12).digest()

    def _difference(self, row: dict[str, Any], line: int, twin: int) -> str:
        """Fields in which ``row`` differs from the row of the same id in line ``twin``, as the end of a message."""
        place = bisect_left(self._examples, twin, key=lambda example: example.line)
        other = self._examples[place] if place < len(self._examples) else None
        if other is None or other.line != twin:
            return ""
        inputs = read_inputs(row, self.folder, self.texts, needed=self.needed)
        own = example_of(row, inputs, self.file, line)
        names = [
            name for name in ("inputs", *TEXTS, "context", "contexts") if getattr(own, name) != getattr(other, name)
        ]
        if "inputs" in names:
            pairs = [(own.inputs.get(kind), other.inputs.get(kind)) for kind in (*FILE_KINDS, *(self.texts or ()))]
            spans = any(a and b and a != b and a.source == b.source for a, b in pairs)
            names[0] = "start or end" if spans else "file"
        return f", for another {names[0]}" if names else ""


def repeated_inputs(examples: Sequence[Example]) -> str | None:
    """Line that names two examples which differ in their ids and captions only, and counts them; None without any."""
    first: dict[int, Example] = {}
    again: list[Example] = []
    reading = (row for row in examples if row.inputs or row.context or row.prompt)
    for row in (row for row in reading if row.captions and row.id != str(row.line)):
        key = hash((*row.inputs.items(), row.prompt, row.context, row.contexts, row.label, row.user, row.split))
        if first.setdefault(key, row) is not row:
            again.append(row)
    if not again:
        return None
    row, twin = again[0], next(twin for twin in first.values() if twin.inputs == again[0].inputs)
    count = "a row names" if len(again) == 1 else f"{len(again)} rows name"
    return (
        f"{row.file}:{row.line}: {count} an input again under another id: {row.id!r} is {twin.id!r} of line "
        f"{twin.line}. Each counts as an input of its own; with one id an input, or no column id, their captions are "
        "those of one input"
    )
