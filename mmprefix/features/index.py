"""Where each entry of a feature store is: one table over all its shards, in a file that all processes map.

``row`` and ``shard`` (N) are the places of all entries in the order of their keys; those whose keys begin with the
same k bits stand from ``starts[bits]`` to ``starts[bits + 1]``, (2^k + 1), with 2^k at least N. The file tells which
shards it is of. One that is of others, damaged or missing is made anew by one of the processes that open the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.features.shard import KEY, Shard
from mmprefix.features.tensor_file import DamagedError, TensorFile, write_tensor_file

_PARTS = ("starts", "shard", "row")


class Index:
    """Finds an entry of ``shards`` by its key, in the table of ``_PARTS``; gives all of them in the order of keys."""

    def __init__(self, shards: Sequence[Shard], parts: Sequence[Tensor]) -> None:
        self.shards = list(shards)
        self._starts, self._shard, self._row = (part.numpy().data for part in parts)
        self._rest = 65 - (len(self._starts) - 1).bit_length()  # 64 - k

    def __len__(self) -> int:
        return len(self._row)

    def __iter__(self) -> Iterator[tuple[Shard, int]]:
        return ((self.shards[shard], row) for shard, row in zip(self._shard, self._row, strict=True))

    def find(self, key: bytes) -> tuple[Shard, int] | None:
        """The shard, and the row there, of the entry with this very key, if it is there."""
        bits = int.from_bytes(key[:8], "big") >> self._rest
        for place in range(self._starts[bits], self._starts[bits + 1]):
            shard, row = self.shards[self._shard[place]], self._row[place]
            if shard.key(row) == key:
                return shard, row
        return None


def open_index(shards: Sequence[Shard], file: Path) -> Index:
    """The index of these shards, mapped from ``file``, which is written where it does not hold that yet.

    Where the disk does not take it, this process has an index of its own in memory.
    """
    found = _mapped(shards, file)
    if found is None:
        with suppress(OSError, NotImplementedError, InputError), FileLock(file.with_name(f"{file.name}.lock")):
            if _mapped(shards, file) is None:  # else it was written meanwhile, and all are to map the same file
                write_tensor_file(file, dict(zip(_PARTS, _table(shards), strict=True)), shards=_told(shards))
        found = _mapped(shards, file)
    return Index(shards, _table(shards)) if found is None else found


def _mapped(shards: Sequence[Shard], file: Path) -> Index | None:
    try:
        mapped = TensorFile(file, _PARTS)
    except DamagedError:
        return None
    if mapped.about.get("shards") != _told(shards) or not mapped.is_whole():
        return None
    return Index(shards, mapped.parts)


def _told(shards: Sequence[Shard]) -> str:
    lines = [f"{shard.file.name} {shard.sha256} {len(shard)}\n" for shard in shards]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _table(shards: Sequence[Shard]) -> list[Tensor]:
    keys = np.concatenate([np.zeros((0, KEY), dtype=np.uint8), *(shard.keys.numpy() for shard in shards)])
    heads = keys[:, :8].copy().view(">u8").ravel().astype(np.uint64)
    order = np.argsort(heads, kind="stable")
    sizes = [len(shard) for shard in shards]
    shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    row = np.concatenate([np.zeros(0, dtype=np.int32), *(np.arange(size, dtype=np.int32) for size in sizes)])
    k = len(heads).bit_length()
    counts = np.bincount((heads >> np.uint64(64 - k)).astype(np.int64), minlength=1 << k)
    starts = np.concatenate([np.zeros(1, dtype=np.int32), counts.cumsum(dtype=np.int32)])
    return [torch.from_numpy(part) for part in (starts, shard[order], row[order])]
