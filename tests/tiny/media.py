"""Tone and picture of two colours, to test reading."""

from __future__ import annotations

import numpy as np
from PIL import Image

RATE = 22050  # samples a second


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    """Sine (S,), float32."""
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def scene() -> Image.Image:
    """Picture whose left half is red and right half blue, 40 wide and 20 high."""
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (20, 0, 40, 20))
    return picture


def near(picture: Image.Image, place: tuple[int, int], colour: tuple[int, int, int], worst: int = 12) -> bool:
    """Return True if the pixel at ``place`` differs from ``colour`` by at most ``worst`` in each channel."""
    pixel = picture.getpixel(place)
    assert isinstance(pixel, tuple)
    return picture.mode == "RGB" and max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= worst
