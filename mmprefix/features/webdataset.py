"""``mmprefix encode --to webdataset``: features and captions as tar files that are read from end to end, from anywhere.

Form of WebDataset (https://github.com/webdataset/webdataset): the files of one name are a row, ``KEY.json`` beside
``KEY.BRANCH.frames.npy`` (T D) and ``KEY.BRANCH.pooled.npy`` (G,), or ``KEY.BRANCH.values.npy`` where the numbers of a
branch are not encoded. Rows are in random order; all rows of a tar have the same branches. ``index.json``, written
last, lists the tars of each split with their rows and branches, and describes the encoders.
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
    *,
    encoders: Mapping[str, Any],
    rows: int,
    seed: int,
) -> dict[str, int]:
    """Write the rows of each split to tars of at most ``rows`` rows; returns the number of tars of each split.

    ``readers`` give the tensors or features of an input, by branch; ``encoders`` are the descriptions of the stores
    (``store_description``) of the branches that are encoded. ``seed`` is that of the order. Raises InputError where the
    folder holds an index already, and where WebDataset is not installed.
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
        for number in order:
            groups.setdefault(tuple(sorted(set(examples[number].inputs) & set(readers))), []).append(number)
        for branches, numbers in groups.items():
            for start in range(0, len(numbers), rows):
                name = f"{split}-{len(index[split]):06}.tar"
                tar_rows = [(number, examples[number]) for number in numbers[start : start + rows]]
                write_atomically(folder / name, partial(_write, tar_rows, readers))
                index[split].append({"file": name, "rows": len(tar_rows), "branches": list(branches)})
    text = json.dumps({"format": FORMAT, "encoders": dict(encoders), "splits": index}, indent=1) + "\n"
    write_atomically(folder / INDEX, lambda fresh: fresh.write_text(text, encoding="utf-8"))
    return {split: len(files) for split, files in index.items()}


def _write(rows: Sequence[tuple[int, Example]], readers: Mapping[str, LoadInput], file: Path) -> None:
    import webdataset

    with file.open("wb") as stream, webdataset.TarWriter(stream, encoder=False) as tar:  # pyright: ignore
        for number, example in rows:
            tar.write({"__key__": f"{number:09}", **dict(_files(example, readers))})


def _files(example: Example, readers: Mapping[str, LoadInput]) -> Iterator[tuple[str, bytes]]:
    fields = {name: getattr(example, name) for name in ("id", "captions", "prompt", "context", "contexts", "user")}
    yield "json", json.dumps(fields, ensure_ascii=False).encode()
    for branch, ref in example.inputs.items():
        if branch not in readers:
            continue
        value = readers[branch](ref.source, ref.start, ref.end)
        parts = value._asdict() if isinstance(value, FeatureRow) else {"values": value}
        for name, part in parts.items():
            yield f"{branch}.{name}.npy", _npy(part)


def _npy(part: Tensor) -> bytes:
    stream = io.BytesIO()
    np.save(stream, part.numpy())
    return stream.getvalue()
