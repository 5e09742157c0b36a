"""Functions that load sounds and images for a data module that has no model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmprefix.media.audio import read_waveform
from mmprefix.media.image import read_picture
from mmprefix.media.source import Source

RATE = 8000  # Hz


@dataclass(frozen=True)
class LoadSound:
    """Waveform (S,) at ``RATE`` Hz."""

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        return read_waveform(source, RATE, start, end)


@dataclass(frozen=True)
class LoadPicture:
    """Picture (3 4 4) with values from 0 to 1."""

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        pixels = np.asarray(read_picture(source).resize((4, 4)), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255.0
