"""Shard of a feature store: features of N inputs in one file, written once and then only mapped into memory.

A shard (``mmprefix.features.tensor_file``) holds ``keys`` (N 16) bytes, ``frames`` (F D), the frames of all inputs one
after the other, ``ends`` (N), the row of ``frames`` behind the last of each input, and ``pooled`` (N G).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mmprefix.features.tensor_file import TensorFile, write_tensor_file
from mmprefix.types import FeatureRow

KEY = 16  # bytes of a key
_PARTS = ("keys", "frames", "ends", "pooled")


class Shard:
    """Mapped tensors of a shard. Raises DamagedError for a damaged or incomplete file."""

    def __init__(self, file: Path) -> None:
        self.file, self._mapped = file, TensorFile(file, _PARTS)
        self.sha256 = self._mapped.sha256
        self.keys, self.frames, ends, self.pooled = self._mapped.parts
        self.ends, self._names = ends.numpy().data, self.keys.view(-1).numpy().data
        self._frames, self._pooled = self.frames.numpy(), self.pooled.numpy()  # their views are cheaper than torch's
        self._no_frames = self.frames[:0] if not self.frames.numel() else None
        self._no_pooled = self.pooled[0] if not self.pooled.numel() else None

    def __len__(self) -> int:
        return len(self.ends)

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

    Raises InputError where the disk refuses.
    """
    ends = torch.tensor([len(entry.frames) for entry in entries]).cumsum(0)
    packed = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), KEY)
    frames, pooled = torch.cat([entry.frames for entry in entries]), torch.stack([entry.pooled for entry in entries])
    parts = [packed, frames.contiguous(), ends, pooled.contiguous()]
    write_tensor_file(file, dict(zip(_PARTS, parts, strict=True)))
