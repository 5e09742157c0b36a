"""Input sources: a file, bytes, a PIL image, or a waveform in memory, and the name each has in an error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


class Waveform(NamedTuple):
    """Samples in memory, mono (S,) or channels first (C, S), float in -1..1 or integers, and their rate in Hz."""

    values: np.ndarray | Tensor
    rate: int


Source = str | Path | bytes | Image.Image | Waveform | tuple[float, ...]  # the last: numbers as they are, no file


def name_of(source: Source) -> str:
    """What error messages call ``source``."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, tuple) and not isinstance(source, Waveform):
        return "the given numbers"
    kinds = {bytes: "the given bytes", Waveform: "the given waveform"}
    return kinds.get(type(source), "the given picture")
