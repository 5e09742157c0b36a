"""Shard of a feature store: features of N inputs in one file, written once and then only mapped into memory.

A shard (``mmprefix.features.tensor_file``) holds ``keys`` (N 16) bytes, ``frames`` (F D), the frames of all inputs one
after the other, ``ends`` (N), the row of ``frames`` behind the last of each input, and ``pooled`` (N G).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmprefix.features.tensor_file import DamagedError, TensorFile, write_tensor_file
from mmprefix.types import FeatureRow

KEY = 16  # bytes of a key
_PARTS = ("keys", "frames", "ends", "pooled")


class Shard:
    """Mapped tensors of a shard. Raises DamagedError for a damaged or incomplete file."""

    def __init__(self, file: Path) -> None:
        self.file, self._mapped = file, TensorFile(file, _PARTS)
        self.sha256 = self._mapped.sha256
        self.keys, self.frames, ends, self.pooled = self._mapped.parts
        if fault := _fault(self.keys, self.frames, ends, self.pooled):
            raise DamagedError(f"{file}: cannot be read ({fault})")
        self.ends, self._names = ends.numpy().data, self.keys.view(-1).numpy().data
        self._frames, self._pooled = self.frames.numpy(), self.pooled.numpy()  # their views are cheaper than torch's
        self._no_frames = self.frames[:0] if not self.frames.numel() else None
        self._no_pooled = self.pooled[0] if not self.pooled.numel() else None

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of frames and summaries, each 0 where the shard has none."""
        return self.frames.shape[1], self.pooled.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the numbers."""
        return self.frames.dtype

    def key(self, row: int) -> bytes:
        """Key of the entry in ``row``."""
        return self._names[KEY * row : KEY * row + KEY].tobytes()

    def __getitem__(self, row: int) -> FeatureRow:
        """Entry in ``row``, as views of the mapped file; collating copies them."""
        frames, pooled = self._no_frames, self._no_pooled
        if frames is None:
            frames = torch.from_numpy(self._frames[self.ends[row - 1] if row else 0 : self.ends[row]])
        if pooled is None:
            pooled = torch.from_numpy(self._pooled[row])
        return FeatureRow(frames, pooled)

    def is_whole(self) -> bool:
        """Return True where the content has the hash it was written with; reads all of it."""
        return self._mapped.is_whole()


def write_shard(file: Path, keys: Sequence[bytes], entries: Sequence[FeatureRow]) -> None:
    """Write ``entries`` (of one width) under their keys; ``file`` appears whole or not at all.

    Raises InputError where the disk refuses, and FileExistsError where the file is there: a shard is written once.
    """
    if file.exists():
        raise FileExistsError(file)
    ends = torch.tensor([len(entry.frames) for entry in entries]).cumsum(0)
    packed = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), KEY)
    frames, pooled = torch.cat([entry.frames for entry in entries]), torch.stack([entry.pooled for entry in entries])
    parts = [packed, frames.contiguous(), ends, pooled.contiguous()]
    write_tensor_file(file, dict(zip(_PARTS, parts, strict=True)))


def _fault(keys: Tensor, frames: Tensor, ends: Tensor, pooled: Tensor) -> str:
    """Reason why these are not the tensors of a shard, or an empty text."""
    shapes = {"keys": keys.shape, "frames": frames.shape, "ends": ends.shape, "pooled": pooled.shape}
    sides = [len(shape) for shape in shapes.values()]
    if sides != [2, 2, 1, 2] or keys.shape[1] != KEY or not len(keys) == len(ends) == len(pooled):
        return "shapes " + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    kinds = (keys.dtype, ends.dtype, pooled.dtype)
    if kinds != (torch.uint8, torch.int64, frames.dtype) or not frames.is_floating_point():
        return f"dtypes of keys, ends and pooled {kinds}, of frames {frames.dtype}"
    bounds = [0, *ends[:1].tolist(), *ends[-1:].tolist(), len(frames)]
    if bounds != sorted(bounds) or bounds[-2] != len(frames) or bool((ends[1:] < ends[:-1]).any()):
        return "ends that are not those of its frames"
    return ""
