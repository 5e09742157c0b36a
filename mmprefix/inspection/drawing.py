"""Maps drawn over a picture, or over the spectrogram of a sound, with NumPy and Pillow alone.

Colours go from dark blue to yellow in even steps of brightness, as those of viridis and cividis do, so that they are
told apart by eyes of every kind and in grey (Nuñez et al. 2018, https://doi.org/10.1371/journal.pone.0199239).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchaudio.functional import melscale_fbanks

from mmprefix.errors import InputError
from mmprefix.inference.inputs import InputSource, assign_to_branches, source_and_span
from mmprefix.inspection.maps import Maps, to_one
from mmprefix.media.audio import read_waveform
from mmprefix.media.image import read_picture

_STOPS = (  # red, green, blue from cold to hot: brightness rises evenly
    (0, 32, 77),
    (36, 62, 110),
    (87, 92, 109),
    (124, 123, 120),
    (165, 156, 116),
    (210, 193, 95),
    (255, 234, 70),
)
_SIDE = 384  # pixels: a smaller picture is shown larger
_RATE, _WINDOW, _HOP, _BANDS = 16000, 400, 160, 64  # of the spectrogram: 25 ms every 10 ms
_HEIGHT, _BAR = 192, 28  # pixels of the spectrogram, and of the bar of heat below it


def colours(values: np.ndarray) -> np.ndarray:
    """Numbers (...) in 0..1 → colours (... 3), uint8, from dark blue (0) to yellow (1)."""
    places = np.linspace(0, 1, len(_STOPS))
    channels = [np.interp(values, places, channel) for channel in zip(*_STOPS, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def heat_picture(
    picture: InputSource, maps: Maps | np.ndarray, label: str | int | None = None, *, strength: float = 0.6
) -> Image.Image:
    """A picture in grey under the colours of a map; RGB, at least 384 pixels on its longer side.

    ``maps`` is a ``Maps`` of a picture, of which ``label`` picks one (None: all together), or cells (Y X) in 0..1.
    ``strength`` from 0 to 1 is how much of the colours covers the picture. Raises InputError for the map of a sound.
    """
    cells = _cells(maps, label, 2, "heat_picture")
    if not 0 <= strength <= 1:
        raise InputError(f"strength {strength}: give a number from 0 to 1")
    shown = read_picture(source_and_span(_source(picture, "image"))[0])
    larger = max(1.0, _SIDE / max(shown.size))
    shown = shown.resize((round(shown.width * larger), round(shown.height * larger)), Image.Resampling.BICUBIC)
    grey = np.asarray(shown.convert("L"), dtype=np.float32)[..., None]
    heat = _spread(cells, maps, shown.size)
    return Image.fromarray(((1 - strength) * grey + strength * colours(heat)).round().astype(np.uint8))


def heat_spectrogram(waveform: InputSource, maps: Maps | np.ndarray, label: str | int | None = None) -> Image.Image:
    """Log-mel spectrogram of a sound, low pitches at the bottom, and below it the heat of a map as a bar; RGB.

    ``waveform`` is whatever a model reads as a sound. ``maps`` is a ``Maps`` of a sound, of which ``label`` picks one
    (None: all together), or slices (T) of equal length in 0..1. Slices that are cold are darkened in the spectrogram.
    Raises InputError for the map of a picture.
    """
    cells = _cells(maps, label, 1, "heat_spectrogram")
    source, start, end = source_and_span(_source(waveform, "audio"))
    samples = read_waveform(source, _RATE, start, end)
    seconds = len(samples) / _RATE
    edges = maps.x if isinstance(maps, Maps) else np.linspace(0, seconds, len(cells) + 1)
    width = int(np.clip(seconds * 100, 320, 1600))
    columns = (np.arange(width) + 0.5) / width * seconds
    heat = cells[np.clip(np.searchsorted(edges, columns, side="right") - 1, 0, len(cells) - 1)]
    grey = Image.fromarray(log_mel(samples)[::-1].copy()).resize((width, _HEIGHT), Image.Resampling.BILINEAR)
    dimmed = np.asarray(grey)[..., None] * (0.35 + 0.65 * heat)[None, :, None] * 255
    bar = np.broadcast_to(colours(heat)[None], (_BAR, width, 3))
    drawn = Image.fromarray(np.concatenate([dimmed.repeat(3, 2).round().astype(np.uint8), bar]))
    _mark_seconds(drawn, seconds)
    return drawn


def log_mel(samples: torch.Tensor) -> np.ndarray:
    """Samples (S,) at 16 kHz → mel bands over time (64 F), of the loudest 60 dB, in 0..1."""
    padded = torch.nn.functional.pad(samples, (0, max(0, _WINDOW - len(samples))))
    window = torch.hann_window(_WINDOW)
    power = torch.stft(padded, _WINDOW, _HOP, window=window, pad_mode="constant", return_complex=True).abs().square()
    filters = melscale_fbanks(_WINDOW // 2 + 1, 40.0, 7600.0, _BANDS, _RATE)
    level = 10 * (filters.T @ power).clamp(min=1e-10).log10()
    return to_one(((level - level.max()) / 60 + 1).clamp(min=0).numpy())[0]


def _cells(maps: Maps | np.ndarray, label: str | int | None, axes: int, call: str) -> np.ndarray:
    cells = np.asarray(maps.pick(label) if isinstance(maps, Maps) else maps, dtype=np.float32)
    if cells.ndim != axes or not cells.size:
        kind = "picture" if axes == 2 else "sound"
        raise InputError(f"{call}: a map of shape {cells.shape} is none of a {kind}")
    return cells.clip(0, 1)


def _spread(cells: np.ndarray, maps: Maps | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cells (Y X) on the pixels of a picture shown at ``size``; 0 outside what the map covers."""
    if not isinstance(maps, Maps):
        return np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.NEAREST))
    own = maps.size or (float(maps.x[-1]), float(maps.y[-1]))
    places = []
    for edges, side, shown in zip((maps.x, maps.y), own, size, strict=True):
        at = (np.arange(shown) + 0.5) / shown * side
        places.append((np.searchsorted(edges, at, side="right") - 1, (at >= edges[0]) & (at < edges[-1])))
    (columns, across), (rows, down) = places
    heat = cells[rows.clip(0, len(cells) - 1)][:, columns.clip(0, cells.shape[1] - 1)]
    return heat * (down[:, None] & across[None])


def _source(value: InputSource, kind: str) -> InputSource:
    return assign_to_branches(value, {kind: kind})[kind]


def _mark_seconds(drawn: Image.Image, seconds: float) -> None:
    """Short lines and numbers at whole seconds (or fewer) along the bar of heat."""
    pen = ImageDraw.Draw(drawn)
    step = next(step for step in (0.5, 1, 2, 5, 10, 30, 60, 300, 1e9) if seconds / step <= 12)
    for second in np.arange(0, seconds, step):
        x = second / seconds * drawn.width
        pen.line((x, _HEIGHT, x, _HEIGHT + 5), fill="white")
        pen.text((x + 2, _HEIGHT - 14), f"{second:g} s", fill="white")
