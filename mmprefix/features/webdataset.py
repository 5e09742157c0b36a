"""``mmprefix encode --to webdataset``: features and captions as tar files that are read from end to end, from anywhere.

WebDataset's form (https://github.com/webdataset/webdataset): a row is the files of one name, ``KEY.json`` beside
``KEY.BRANCH.frames.npy`` (T D) and ``KEY.BRANCH.pooled.npy`` (G,), or ``KEY.BRANCH.values.npy`` where the numbers of a
branch are not encoded. Rows are in random order, those of one tar have the same branches. ``index.json``, written last,
names the tars of each split, their rows and branches, and what the features were made by.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmprefix.atomic import disk_errors_as_input_errors, write_atomically
from mmprefix.data.manifest import Example
from mmprefix.data.model_inputs import LoadInput
from mmprefix.errors import InputError
from mmprefix.types import FeatureRow

FORMAT, INDEX = 1, "index.json"


def write_webdataset(
    folder: Path,
    splits: Mapping[str, Sequence[Example]],
    readers: Mapping[str, LoadInput],
    encoders: Mapping[str, Any],
    rows: int,
    seed: int,
) -> dict[str, int]:
    """Writes the rows of each split, at most ``rows`` a tar; how many tars each has.

    ``readers`` give what is known of an input of each branch; ``encoders`` is the description of those that were
    encoded. Raises InputError where the folder holds an index already, and where WebDataset is not installed.
    """
    if (folder / INDEX).exists():
        raise InputError(f"--out {folder}: holds shards already; give another folder, or remove it")
    with disk_errors_as_input_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[dict[str, Any]]] = {}
    for split, examples in splits.items():
        index[split] = []
        order = np.random.default_rng(seed).permutation(len(examples)).tolist()
        groups: dict[tuple[str, ...], list[int]] = {}
        for place in order:
            groups.setdefault(tuple(sorted(set(examples[place].inputs) & set(readers))), []).append(place)
        for branches, places in groups.items():
            for at in range(0, len(places), rows):
                name = f"{split}-{len(index[split]):06}.tar"
                some = [(place, examples[place]) for place in places[at : at + rows]]
                write_atomically(folder / name, partial(_write, some, readers))
                index[split].append({"file": name, "rows": len(some), "branches": list(branches)})
    told = {"format": FORMAT, "encoders": dict(encoders), "splits": index}
    write_atomically(
        folder / INDEX, lambda fresh: fresh.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    )
    return {split: len(files) for split, files in index.items()}


def _write(rows: Sequence[tuple[int, Example]], readers: Mapping[str, LoadInput], file: Path) -> None:
    import webdataset

    with file.open("wb") as stream, webdataset.TarWriter(stream, encoder=False) as tar:  # pyright: ignore
        for number, example in rows:
            tar.write({"__key__": f"{number:09}", **dict(_files(example, readers))})


def _files(example: Example, readers: Mapping[str, LoadInput]) -> Iterator[tuple[str, bytes]]:
    told = {name: getattr(example, name) for name in ("id", "captions", "prompt", "context", "contexts", "user")}
    yield "json", json.dumps(told, ensure_ascii=False).encode()
    for branch, item in example.inputs.items():
        if branch not in readers:
            continue
        found = readers[branch](item.source, item.start, item.end)
        parts = found._asdict() if isinstance(found, FeatureRow) else {"values": found}
        for name, part in parts.items():
            yield f"{branch}.{name}.npy", _npy(part)


def _npy(part: Tensor) -> bytes:
    stream = io.BytesIO()
    np.save(stream, part.numpy())
    return stream.getvalue()
