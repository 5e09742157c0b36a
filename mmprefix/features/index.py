"""Index of a feature store: one table over all its shards, in a file that all processes map.

``shard`` and ``row`` (N) locate all entries, in the order of their keys; entries whose keys begin with the same k bits
lie from ``starts[bits]`` to ``starts[bits + 1]``, (2^k + 1), with 2^k at least N. The file records which shards it
indexes. A file that is of other shards, damaged or missing is written anew by one of the processes that open the store.
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
    """Look-up of the entries of ``shards`` by key; iterates over (shard, row) in the order of keys.

    ``parts`` are the tensors ``_PARTS`` of the index file.
    """

    def __init__(self, shards: Sequence[Shard], parts: Sequence[Tensor]) -> None:
        self.shards = list(shards)
        self._starts, self._shard, self._row = (part.numpy().data for part in parts)
        self._rest = 65 - (len(self._starts) - 1).bit_length()  # 64 - k

    def __len__(self) -> int:
        return len(self._row)

    def __iter__(self) -> Iterator[tuple[Shard, int]]:
        return ((self.shards[shard], row) for shard, row in zip(self._shard, self._row, strict=True))

    def find(self, key: bytes) -> tuple[Shard, int] | None:
        """Shard and row of the entry with ``key``, or None."""
        bits = int.from_bytes(key[:8], "big") >> self._rest
        for entry in range(self._starts[bits], self._starts[bits + 1]):
            shard, row = self.shards[self._shard[entry]], self._row[entry]
            if shard.key(row) == key:
                return shard, row
        return None


def open_index(shards: Sequence[Shard], file: Path) -> Index:
    """Index of ``shards``, mapped from ``file``, which is written first where it is missing or of other shards.

    Where the disk refuses, this process holds an index of its own in memory.
    """
    index = _mapped(shards, file)
    if index is None:
        with suppress(OSError, NotImplementedError, InputError), FileLock(file.with_name(f"{file.name}.lock")):
            if _mapped(shards, file) is None:  # else another process wrote it: map that one
                write_tensor_file(file, dict(zip(_PARTS, _table(shards), strict=True)), shards=_fingerprint(shards))
        index = _mapped(shards, file)
    return Index(shards, _table(shards)) if index is None else index


def _mapped(shards: Sequence[Shard], file: Path) -> Index | None:
    try:
        mapped = TensorFile(file, _PARTS)
    except DamagedError:
        return None
    if mapped.about.get("shards") != _fingerprint(shards) or not mapped.is_whole():
        return None
    return Index(shards, mapped.parts)


def _fingerprint(shards: Sequence[Shard]) -> str:
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
