"""file → waveform or pixels: the only place where sound and pictures come in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Waveform(NamedTuple):
    """Samples in memory, mono (S,) or channels first (C, S), float in -1..1 or integers, and their rate in Hz."""

    values: np.ndarray | Tensor
    rate: int


Source = "str | Path | bytes | Image.Image | Waveform"
