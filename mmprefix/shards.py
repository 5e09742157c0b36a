"""One file of a feature store: what an encoder found in many inputs, written once and then only mapped into memory.

A shard is a safetensors file, so any program can read it: ``keys`` (N 16) bytes, ``frames`` (F D), the frames of all
inputs one after the other, ``ends`` (N), where those of each input end, and ``pooled`` (N G). Its metadata hold the
SHA-256 of all that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmprefix.atomic import atomically
from mmprefix.types import InputError

KEY = 16  # bytes of a key
_DTYPES = {"U8": torch.uint8, "I64": torch.int64, "F16": torch.float16, "F32": torch.float32}
_PARTS = ("keys", "frames", "ends", "pooled")


class Entry(NamedTuple):
    """What was found in one input: frames (T D) and a summary (G,). Without frames T = 0, without a summary G = 0."""

    frames: Tensor
    pooled: Tensor


class DamagedError(Exception):
    """A file that is no whole shard."""


class Shard:
    """A shard's tensors, mapped: nothing is read until it is looked at, and all processes share what was read."""

    def __init__(self, file: Path) -> None:
        try:
            with file.open("rb") as stream:
                begin = 8 + int.from_bytes(stream.read(8), "little")
                size = os.fstat(stream.fileno()).st_size
                header = json.loads(stream.read(begin - 8)) if begin <= size else {}
            if begin + max(header[name]["data_offsets"][1] for name in _PARTS) != size:
                raise DamagedError(f"{file}: is not as long as it says")
            storage = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size))
            parts = [_part(storage, header[name], begin) for name in _PARTS]
            self.sha256 = str(header["__metadata__"]["sha256"])
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{file}: is no shard that can be read ({str(error).splitlines()[0]})") from error
        self.file = file
        self.keys, self.frames, ends, self.pooled = parts
        self.ends, self._names = ends.numpy().data, self.keys.view(-1).numpy().data
        self._no_frames = self.frames[:0] if not len(self.frames) else None

    def __len__(self) -> int:
        return len(self.ends)

    def key(self, row: int) -> bytes:
        """The key of an entry."""
        return self._names[KEY * row : KEY * row + KEY].tobytes()

    def __getitem__(self, row: int) -> Entry:
        """Views of the mapped file: a copy is made where they are put into a batch."""
        if self._no_frames is not None:
            return Entry(self._no_frames, self.pooled[row])
        return Entry(self.frames[self.ends[row - 1] if row else 0 : self.ends[row]], self.pooled[row])

    def is_whole(self) -> bool:
        """Whether the content is what was written; reads all of it."""
        return self.sha256 == _digest([self.keys, self.frames, torch.from_numpy(self.ends.obj), self.pooled])


def write_shard(file: Path, keys: Sequence[bytes], entries: Sequence[Entry]) -> None:
    """Writes entries (of one width) under their keys; ``file`` is there whole or not at all.

    Raises InputError where the disk refuses.
    """
    ends = torch.tensor([len(entry.frames) for entry in entries]).cumsum(0)
    packed = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), KEY)
    frames, pooled = torch.cat([entry.frames for entry in entries]), torch.stack([entry.pooled for entry in entries])
    parts = [packed, frames.contiguous(), ends, pooled.contiguous()]
    tensors: dict[str, Tensor] = dict(zip(_PARTS, parts, strict=True))
    atomically(file, lambda fresh: save_file(tensors, fresh, {"sha256": _digest(parts)}))


def float_of(name: str) -> torch.dtype:
    """The type of the numbers in a store; InputError for one that it cannot hold."""
    kinds = {"float16": torch.float16, "float32": torch.float32}
    if name not in kinds:
        raise InputError(f"cache_dtype {name!r}: give {' or '.join(kinds)}")
    return kinds[name]


def _part(storage: torch.UntypedStorage, part: dict[str, Any], begin: int) -> Tensor:
    dtype, shape = _DTYPES[part["dtype"]], cast(list[int], part["shape"])
    first, last = part["data_offsets"]
    values = torch.empty(0, dtype=dtype)
    if first == last:
        return values.view(shape)
    stride = [1]
    for side in reversed(shape[1:]):
        stride.insert(0, stride[0] * side)
    return values.set_(storage, (begin + first) // dtype.itemsize, shape, stride)  # pyright: ignore


def _digest(parts: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().view(torch.uint8).flatten().numpy().data)
    return digest.hexdigest()
