"""Places of an encoder's frames: cells of the part of a picture that it sees, or slices of a sound."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torch import Tensor

from mmprefix.encoders.ast import AST
from mmprefix.encoders.audio_input import ReadWaveform
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.picture_set import PictureSet
from mmprefix.errors import InputError
from mmprefix.inference.inputs import InputSource, source_and_span
from mmprefix.media.audio import sound_seconds
from mmprefix.media.image import read_picture

_BEFORE = (0, 1, 2, 5)  # tokens before the patches: none, class, class and distillation, class and four registers


def picture_cells(encoder: Encoder, source: InputSource, frames: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of frames that are no place, and the edges x (X+1) and y (Y+1) of the others in pixels.

    Patches are taken as a square grid over what the encoder's preprocessing keeps of the picture, which is asked with
    two ramps. Raises InputError where the frames make no square.
    """
    before = next((count for count in _BEFORE if math.isqrt(max(frames - count, 0)) ** 2 == frames - count), None)
    if before is None or frames == before or isinstance(encoder, PictureSet):
        raise InputError(f"kind 'attention': {frames} frames are no square grid of places; use kind='occlusion'")
    side = math.isqrt(frames - before)
    (left, right), (top, bottom) = _seen(encoder, read_picture(source_and_span(source)[0]).size)
    return before, np.linspace(left, right, side + 1), np.linspace(top, bottom, side + 1)


def sound_slices(encoder: Encoder, source: InputSource, frames: int) -> np.ndarray:
    """Edges (T+1) in seconds of frames that are spread evenly over what the encoder reads of a sound.

    Raises InputError for an encoder whose frames are patches of the spectrogram, or windows with silence behind.
    """
    if isinstance(encoder, AST) or getattr(encoder, "window", "sound") != "sound":
        raise InputError(
            "kind 'attention': this encoder's frames are no even slices of the sound; use kind='occlusion'"
        )
    seconds = sound_seconds(*source_and_span(source))
    reads = encoder.preprocess
    if isinstance(reads, ReadWaveform) and reads.seconds is not None:
        seconds = min(seconds, reads.seconds)
    return np.linspace(0, seconds, frames + 1)


def _seen(encoder: Encoder, size: tuple[int, int]) -> list[tuple[float, float]]:
    """(left, right) and (top, bottom) in pixels of what preprocessing keeps of a picture of ``size``."""
    width, height = size
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    ramps = np.stack([across, down, np.zeros_like(across)], axis=2).round().astype(np.uint8)
    black, white = (_pixels(encoder, np.full((height, width, 3), value, dtype=np.uint8)) for value in (0, 255))
    shares = (_pixels(encoder, ramps) - black) / (white - black)
    return [_span(shares[0].mean(0), width), _span(shares[1].mean(1), height)]


def _pixels(encoder: Encoder, values: np.ndarray) -> Tensor:
    return encoder.preprocess(Image.fromarray(values), 0.0, None).float()


def _span(shares: Tensor, side: int) -> tuple[float, float]:
    """Shares of a ramp at the pixels that an encoder sees → where the first begins and the last ends."""
    centres = shares * (side - 1) + 0.5
    half = float(centres[-1] - centres[0]) / max(len(centres) - 1, 1) / 2
    return max(0.0, float(centres[0]) - half), min(float(side), float(centres[-1]) + half)
