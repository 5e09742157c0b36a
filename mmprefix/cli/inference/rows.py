"""Rows of a run: files, folders, globs, addresses and manifests as they are named on the command line."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from mmprefix.data.columns import ColumnMapping
from mmprefix.data.manifest import Example, InputRef, listing, read_manifest
from mmprefix.data.manifest_file import raw_rows
from mmprefix.errors import InputError
from mmprefix.media.kinds import KINDS, kind_of
from mmprefix.media.source import is_url, missing

MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class InputRow:
    """Input of a run.

    ``id`` is a file name or a row's id, ``inputs`` holds files and numbers by manifest column ("": a file without a
    manifest), ``fields`` the manifest row (empty for files). ``manifest`` is the file of a manifest's row, ``folder``
    the folder that was named for a file in it, ``kind`` what that file is; ``references`` are a row's own captions.
    """

    id: str
    inputs: Mapping[str, str | InputRef]
    context: str
    fields: Mapping[str, Any]
    manifest: str = ""
    folder: str = ""
    kind: str | None = None
    references: tuple[str, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """First fields of its line: ``file`` of an input, ``id`` and ``file`` ("": none) of a manifest's row."""
        if not self.fields:
            return {"file": self.id}
        files = [item.path for item in self.inputs.values() if isinstance(item, InputRef) and item.path]
        return {"id": self.id, "file": files[0] if files else ""}


@dataclass
class BadInputs:
    """Lines about inputs that cannot be read, and the number of these: one line may speak of many."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, lines: str, count: int = 1) -> None:
        """Add what ``lines`` say of ``count`` inputs."""
        self.lines.extend(lines.splitlines())
        self.count += count

    def refuse(self) -> NoReturn:
        """Raise all of them as one InputError."""
        lead = f"none of {self.count} inputs can be read\n" if self.count > 1 else ""
        raise InputError(lead + "\n".join(self.lines))


@dataclass(frozen=True)
class InputRows:
    """Rows of a run, and the inputs that are none."""

    rows: list[InputRow] = field(default_factory=list)
    bad: BadInputs = field(default_factory=BadInputs)

    @property
    def name_columns(self) -> list[str]:
        """First columns of a table: id and file where a row is a manifest's, file where none is."""
        return ["id", "file"] if any(row.fields for row in self.rows) else ["file"]


def file_rows(args: argparse.Namespace) -> InputRows:
    """Rows of the inputs named in ``args.files``; a file that is named twice is one row.

    Raises InputError where none can be read.
    """
    named = InputRows()
    for name in args.files:
        _add(named, name, args)
    files = {row.id: row for row in reversed(named.rows) if not row.manifest}
    rows = [row for row in named.rows if row.manifest or files.pop(row.id, None)]
    _require_distinct(rows)
    if not rows:
        named.bad.refuse()
    return InputRows(rows, named.bad)


def manifest_rows(args: argparse.Namespace, manifest: str) -> InputRows:
    """Rows of a manifest, with its context where ``args`` names its column, and a line for each bad row.

    Raises InputError that lists the bad rows where there is no good one.
    """
    root = args.media_root
    examples, faults = read_manifest(manifest, args.split, media_root=root, texts=None)
    if faults and not examples:
        lead = f"{manifest}: {len(faults)} bad rows\n" if len(faults) > 1 else ""
        raise InputError(f"{lead}{listing(faults, near=root)}")
    column, written = getattr(args, "context_field", None), raw_rows(manifest)
    rows, _ = ColumnMapping(tuple(column.split(",")) if column else ("context",)).apply(examples)
    if column and not any(row.context for row in rows):
        raise InputError(f"--context-field {column}: no row of {manifest} has a text in that column")
    good = [
        InputRow(
            row.id,
            row.inputs,
            row.context,
            _fields(row, written[row.line]),
            manifest,
            references=row.captions,
        )
        for row in rows
    ]
    bad = BadInputs()
    if faults:
        bad.add(listing(faults, near=root), len(faults))
    return InputRows(good, bad)


def _fields(row: Example, written: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a manifest's row as they are written; all captions where they have a row each."""
    if row.rows == 1:
        return {**written, "id": row.id}
    return {
        **{key: value for key, value in written.items() if key != "caption"},
        "id": row.id,
        "captions": [*row.captions],
    }


def rows_for_kinds(rows: Iterable[InputRow], kinds: Mapping[str, str]) -> list[InputRow]:
    """Rows without those files of folders that a model of these ``kinds`` (by branch name) does not read.

    For a model of videos the pictures of one folder are one input. Raises InputError for a folder that holds nothing.
    """
    reads, kept, empty = set(kinds.values()), dict[str, InputRow](), dict[str, list[str]]()
    for row in rows:
        if not row.folder:
            kept[f"{row.manifest}\n{row.id}"] = row
            continue
        use = _use(row, reads)
        counts = empty.setdefault(row.folder, [])
        if use is None:
            counts.append(str(row.kind))
        else:
            kept.setdefault(f"\n{use.id}", use)
    used = {row.folder for row in kept.values()}
    for folder, others in empty.items():
        if folder not in used:
            nouns = " or ".join(KINDS[kind].noun for kind in sorted(reads)) or "a context alone"
            held = ", ".join(f"{others.count(kind)} of kind {kind}" for kind in sorted(set(others)))
            raise InputError(f"{folder}: this model reads {nouns}, and the folder holds {held}")
    return list(kept.values())


def _use(row: InputRow, reads: set[str]) -> InputRow | None:
    """A folder's file as a model reads it: itself, the folder whose picture it is, or None."""
    kind = str(row.kind)
    if kind == "image" and any(KINDS[name].folders for name in reads):
        parent = str(Path(row.id).parent)
        return replace(row, id=parent, inputs={"": parent})
    return row if kind in reads or KINDS[kind].read_as in reads else None


def _add(rows: InputRows, name: str, args: argparse.Namespace) -> None:
    """Add what ``name`` names to ``rows``."""
    context = getattr(args, "context", None) or ""
    if is_url(name) and not args.allow_urls:
        rows.bad.add(f"{name}: is an address, and nothing is downloaded unless --allow-urls is given")
    elif os.path.isdir(name):
        files = [InputRow(file, {"": file}, context, {}, folder=name, kind=kind) for file, kind in _media_below(name)]
        rows.rows.extend(files)
        if not files:
            rows.bad.add(f"{name}: the folder holds no picture, sound or video")
    elif os.path.isfile(name) and name.lower().endswith(MANIFESTS):
        _add_manifest(rows, name, args)
    elif is_url(name) or not (reason := missing(name)):
        rows.rows.append(InputRow(name, {"": name}, context, {}))
    elif glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        for match in matches:
            _add(rows, match, args)
        if not matches:
            rows.bad.add(f"{name}: matches no file")
    else:
        rows.bad.add(reason)


def _add_manifest(rows: InputRows, name: str, args: argparse.Namespace) -> None:
    try:
        more = manifest_rows(args, name)
    except InputError as error:
        rows.bad.add(str(error))
    else:
        rows.rows.extend(more.rows)
        if more.bad.count:
            rows.bad.add("\n".join(more.bad.lines), more.bad.count)


def _media_below(folder: str) -> Iterator[tuple[str, str]]:
    """Files below ``folder`` that a model may read, sorted, with their kinds; hidden files and folders are left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not name.startswith(".") and (kind := _kind(path)) is not None:
                yield path, kind


def _kind(path: str) -> str | None:
    """Kind of a file in a folder, None for one of no kind and one that cannot be opened."""
    if path.lower().endswith(MANIFESTS):
        return None
    try:
        return kind_of(path)
    except InputError:
        return None


def _require_distinct(rows: Iterable[InputRow]) -> None:
    """Refuse ids that two manifests share: an output file could not tell their rows."""
    owners: dict[str, str] = {}
    for row in rows:
        if owners.setdefault(row.id, row.manifest) != row.manifest:
            both = f"{owners[row.id] or 'the inputs'} and {row.manifest or 'the inputs'}"
            raise InputError(f"id {row.id!r}: stands in {both}; give them one by one, each with an --out of its own")
