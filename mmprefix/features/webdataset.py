"""``mmprefix encode --to webdataset``: features and captions as tar files that are read from end to end, from anywhere.

Form of WebDataset (https://github.com/webdataset/webdataset): the files of one name are a row, ``KEY.json`` beside
``KEY.BRANCH.frames.npy`` (T D) and ``KEY.BRANCH.pooled.npy`` (G,), or ``KEY.BRANCH.values.npy`` where the numbers of a
branch are not encoded. Earlier texts of the row's user stand in ``KEY.json`` where the model reads any (``history``).
Rows are in random order; all rows of a tar have the same branches. ``index.json``, written last, lists the tars of each
split with their rows and branches, and describes the encoders.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor

from mmprefix.atomic import disk_errors_as_input_errors, remove_left_overs, write_atomically
from mmprefix.data.histories import BRANCH, earlier_texts
from mmprefix.data.manifest import Example
from mmprefix.data.model_inputs import LoadInput
from mmprefix.errors import InputError
from mmprefix.features.store import CachedInputs
from mmprefix.interrupt import advice_if_stopped
from mmprefix.media.source import name_of
from mmprefix.types import FeatureRow

FORMAT, INDEX = 1, "index.json"
_MTIME = 315_532_800  # 1980-01-01, as in a zip: the same rows make the same bits


@dataclass(frozen=True)
class TarPlan:
    """Name of a tar, its split, the branches of its rows, and the rows with their numbers in the manifest."""

    file: str
    split: str
    branches: tuple[str, ...]
    rows: list[tuple[int, Example]]


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
    (``store_description``) of the branches that are encoded. ``seed`` is that of the order. A run that was stopped or
    killed is continued with the same bits: its tars are kept. Raises InputError where the folder holds an index
    already, or tars of other rows or options, where another process writes there, and where the disk refuses.
    """
    tars = [tar for split, examples in splits.items() for tar in _plan(split, examples, readers, rows=rows, seed=seed)]
    with _writing(folder, _fingerprint(tars, readers, encoders)):
        advice = f"the shards so far are in {folder}; the same command goes on"
        with advice_if_stopped(advice):
            for tar in tars:
                if not (folder / tar.file).exists():
                    write_atomically(folder / tar.file, partial(_write, tar.rows, readers))
            index: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
            for tar in tars:
                index[tar.split].append({"file": tar.file, "rows": len(tar.rows), "branches": list(tar.branches)})
            text = json.dumps({"format": FORMAT, "encoders": dict(encoders), "splits": index}, indent=1) + "\n"
            write_atomically(folder / INDEX, lambda fresh: fresh.write_text(text, encoding="utf-8"))
    return {split: len(files) for split, files in index.items()}


def require_no_index(folder: Path) -> None:
    """Refuse a folder that holds shards already: InputError."""
    if (folder / INDEX).exists():
        raise InputError(f"--out {folder}: holds shards already; give another folder, or remove it")


def _plan(split: str, examples: Sequence[Example], readers: Collection[str], *, rows: int, seed: int) -> list[TarPlan]:
    tars: list[TarPlan] = []
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    groups: dict[tuple[str, ...], list[int]] = {}
    for number in order:
        groups.setdefault(tuple(sorted(set(examples[number].inputs) & set(readers))), []).append(number)
    for branches, numbers in groups.items():
        for start in range(0, len(numbers), rows):
            tar_rows = [(number, examples[number]) for number in numbers[start : start + rows]]
            tars.append(TarPlan(f"{split}-{len(tars):06}.tar", split, branches, tar_rows))
    return tars


def _fingerprint(tars: Sequence[TarPlan], readers: Mapping[str, LoadInput], encoders: Mapping[str, Any]) -> str:
    """Hash of all that the bits of the tars follow from; inputs that are not in a store are known by name only."""
    digest = hashlib.sha256(json.dumps([FORMAT, dict(encoders)], sort_keys=True).encode())
    for tar in tars:
        digest.update(tar.file.encode())
        for number, example in tar.rows:
            digest.update(json.dumps([number, _fields(example)]).encode())
            for branch in tar.branches:
                ref, reader = example.inputs[branch], readers[branch]
                keys = reader.keys if isinstance(reader, CachedInputs) else {}
                name = keys.get((ref.source, ref.start, ref.end), b"").hex()
                digest.update(f"{branch} {name} {name_of(ref.source)} {ref.start} {ref.end}\n".encode())
    return digest.hexdigest()


@contextmanager
def _writing(folder: Path, fingerprint: str) -> Generator[None, None, None]:
    """Keep other processes and other data out of ``folder`` while its tars are written."""
    record, lock = folder / ".writing", FileLock(folder / ".writing.lock", fallback_to_soft=False)
    with disk_errors_as_input_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"--out {folder}: another process writes shards there; give another folder") from None
    except (OSError, NotImplementedError) as error:
        raise InputError(f"--out {folder}: its file system refuses a lock ({error}); give another folder") from error
    try:
        require_no_index(folder)
        remove_left_overs(folder)
        before = record.read_text("utf-8", errors="replace") if record.exists() else ""
        if before != fingerprint and any(folder.glob("*.tar")):
            raise InputError(
                f"--out {folder}: holds shards of an unfinished run with other rows, encoders or options; "
                "give another folder, or remove it"
            )
        write_atomically(record, lambda fresh: fresh.write_text(fingerprint, encoding="utf-8"))
        yield
        record.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _write(rows: Sequence[tuple[int, Example]], readers: Mapping[str, LoadInput], file: Path) -> None:
    import webdataset

    with file.open("wb") as stream, webdataset.TarWriter(stream, encoder=False, mtime=_MTIME) as tar:  # pyright: ignore
        for number, example in rows:
            tar.write({"__key__": f"{number:09}", **dict(_files(example, readers))})


def _fields(example: Example) -> dict[str, Any]:
    fields = {name: getattr(example, name) for name in ("id", "captions", "prompt", "context", "contexts", "user")}
    texts = earlier_texts(example)
    return {**fields, BRANCH: texts} if texts else fields


def _files(example: Example, readers: Mapping[str, LoadInput]) -> Iterator[tuple[str, bytes]]:
    yield "json", json.dumps(_fields(example), ensure_ascii=False).encode()
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
