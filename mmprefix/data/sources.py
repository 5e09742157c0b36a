"""Manifests of each split of a run: named one by one, or those of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from mmprefix.data.manifest_file import splits
from mmprefix.errors import InputError

Split = Literal["train", "val", "test", "predict"]
_SUFFIXES = (".jsonl", ".csv", ".tsv")


def manifests_of(split: Split, named: Mapping[str, list[str] | None], root: str | None) -> list[tuple[str, str | None]]:
    """Manifests of ``split``, each with the value of ``split`` that its rows must have (None: any).

    ``named`` are files by split; without them those of the folder ``root`` count: train.jsonl, val.jsonl and
    test.jsonl, as ``mmprefix prepare`` writes them, or manifest.jsonl, whose rows have a field ``split`` (or csv and
    tsv). Without files to predict, those of the test are. Raises InputError for a folder without any manifest.
    """
    files = named[split]
    if files is None and split == "predict":
        return manifests_of("test", named, root)
    if files is not None or root is None:
        return [(file, None) for file in files or []]
    present = {name: file for name in ("manifest", "train", "val", "test") if (file := _file(root, name)) is not None}
    if not present:
        names = "train.jsonl, val.jsonl, test.jsonl or manifest.jsonl"
        raise InputError(f"data.root {root}: there is no {names} (or csv); mmprefix prepare writes them")
    if "manifest" in present:
        return [(present["manifest"], split)] if split in splits(present["manifest"]) else []
    return [(present[split], None)] if split in present else []


def _file(root: str, name: str) -> str | None:
    files = (Path(root) / f"{name}{suffix}" for suffix in _SUFFIXES)
    return next((str(file) for file in files if file.is_file()), None)
