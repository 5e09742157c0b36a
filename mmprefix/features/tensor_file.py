"""Tensors in a file that is written once and then only mapped into memory.

It is a safetensors file, so any program can read it; its metadata hold the SHA-256 of all tensors. Pages are read when
they are first used, and all processes share them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmprefix.atomic import write_atomically

_DTYPES = {"U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "F32": torch.float32}


class DamagedError(Exception):
    """A damaged or incomplete file."""


class TensorFile:
    """Mapped tensors of ``file``: ``parts``, in the order of ``names``, and the metadata ``about`` them.

    Raises DamagedError where the file is not as long as its header says, or lacks one of the tensors.
    """

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        try:
            with file.open("rb") as stream:
                begin = 8 + int.from_bytes(stream.read(8), "little")
                size = os.fstat(stream.fileno()).st_size
                header = json.loads(stream.read(begin - 8)) if begin <= size else {}
            if begin + max(header[name]["data_offsets"][1] for name in names) != size:
                raise DamagedError(f"{file}: is not as long as it says")
            storage = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size))
            self.parts = [_part(storage, header[name], begin) for name in names]
            self.about = dict[str, str](header["__metadata__"])
            self.sha256 = self.about["sha256"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from error

    def is_whole(self) -> bool:
        """Return True where the content has the hash it was written with; reads all of it."""
        return self.sha256 == _digest(self.parts)


def write_tensor_file(file: Path, parts: dict[str, Tensor], **about: str) -> None:
    """Write ``parts`` with the metadata ``about`` them; ``file`` appears whole or not at all.

    Raises InputError where the disk refuses.
    """
    about["sha256"] = _digest(parts.values())
    write_atomically(file, lambda fresh: save_file(parts, fresh, about))


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


def _digest(parts: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.flatten().contiguous().numpy().data)
    return digest.hexdigest()
