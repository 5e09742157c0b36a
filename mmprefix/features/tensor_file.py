"""Tensors in a file that is written once and then only mapped into memory.

It is a safetensors file, so any program can read it; its metadata hold the SHA-256 of all tensors. Pages are read when
they are first used, and all processes share them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmprefix.atomic import write_atomically

_DTYPES = {"U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "F32": torch.float32}


_LONGEST_HEADER = 1 << 20  # bytes; ours have some hundred


class DamagedError(Exception):
    """A damaged or incomplete file."""


class ForeignError(DamagedError):
    """A whole safetensors file that another program has written."""


class TensorFile:
    """Mapped tensors of ``file``: ``parts``, in the order of ``names``, and the metadata ``about`` them.

    Raises DamagedError where the file is not as long as its header says, or has a header that is none, and
    ForeignError where it is whole and has other tensors.
    """

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        try:
            header, begin, size = _read_header(file)
            if begin + max((part["data_offsets"][1] for part in header.values() if "dtype" in part), default=0) != size:
                raise DamagedError(f"{file}: is not as long as it says")
            self.about = dict[str, str](header.get("__metadata__", {}))
            self.sha256 = self.about.get("sha256", "")
            if not self.sha256 or not header.keys() >= set(names):
                raise ForeignError(f"{file}: is another program's, with other tensors than {', '.join(names)}")
            storage = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size))
            self.parts = [_part(storage, header[name], begin) for name in names]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}".split("\n")[0]
            raise DamagedError(f"{file}: cannot be read ({reason})") from error

    def is_whole(self) -> bool:
        """Return True where the content has the hash it was written with; reads all of it."""
        return self.sha256 == _digest(self.parts)


def write_tensor_file(file: Path, parts: dict[str, Tensor], **about: str) -> None:
    """Write ``parts`` with the metadata ``about`` them; ``file`` appears whole or not at all.

    Raises InputError where the disk refuses.
    """
    about["sha256"] = _digest(parts.values())
    write_atomically(file, lambda fresh: save_file(parts, fresh, about))


def _read_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """Header of ``file``, the byte behind it, and the size of the file."""
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        begin = 8 + int.from_bytes(stream.read(8), "little")
        if size < 8 or begin > size:
            raise ValueError(f"it ends after {size} bytes, within its header")
        if begin > _LONGEST_HEADER:
            raise ValueError(f"a header of {begin - 8} bytes")
        header = json.loads(stream.read(begin - 8))
    if not isinstance(header, dict):
        raise ValueError("a header that is no table of tensors")
    return header, begin, size


def _part(storage: torch.UntypedStorage, part: dict[str, Any], begin: int) -> Tensor:
    dtype, shape = _DTYPES[part["dtype"]], cast(list[int], part["shape"])
    first, last = part["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
        raise ValueError(f"shape {shape} from byte {first} to {last}")
    if last - first != math.prod(shape) * dtype.itemsize or begin + last > len(storage):
        raise ValueError(f"{last - first} bytes for a tensor of shape {shape} and {dtype}")
    if (begin + first) % dtype.itemsize:
        raise ValueError(f"{dtype} at byte {begin + first}")
    values = torch.empty(0, dtype=dtype)
    if first == last:
        return values.view(shape)
    stride = [1]
    for side in reversed(shape[1:]):
        stride.insert(0, stride[0] * side)
    return values.set_(storage, (begin + first) // dtype.itemsize, shape, stride)  # pyright: ignore


def _digest(parts: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.flatten().contiguous().numpy().data)
    return digest.hexdigest()
