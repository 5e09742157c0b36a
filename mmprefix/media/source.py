"""Input sources: a file, or a value in memory (bytes, PIL image, waveform, frames, numbers), and its name in errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor


class Waveform(NamedTuple):
    """Samples in memory, mono (S,) or channels first (C, S), float in -1..1 or integers, and their rate in Hz."""

    values: np.ndarray | Tensor
    rate: int


@dataclass(frozen=True)
class FrameSequence:
    """A video given as single pictures in order (files, bytes or PIL images), ``rate`` pictures a second."""

    pictures: Sequence[str | Path | bytes | Image.Image]
    rate: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pictures", tuple(self.pictures))  # hashable: a source is a key in the feature cache


Source: TypeAlias = "str | Path | bytes | Image.Image | Waveform | FrameSequence | tuple[float, ...]"
"""A file, or a value in memory; the last kind of value is numbers. A string: nobody needs Pillow to read a manifest."""


def name_of(source: Source) -> str:
    """The name of ``source`` in error messages: its path, or "the given ..." for a value in memory."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, FrameSequence):
        first = name_of(source.pictures[0]) if source.pictures else "no picture"
        return f"the video of {len(source.pictures)} pictures ({first} ...)"
    if isinstance(source, tuple) and not isinstance(source, Waveform):
        return "the given numbers"
    kinds = {bytes: "the given bytes", Waveform: "the given waveform"}
    return kinds.get(type(source), "the given picture")
