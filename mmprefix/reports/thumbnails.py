"""Pictures and sounds made small enough to lie in a page: JPEG, a spectrogram, and a clip to listen to."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from mmprefix.media.audio import read_samples, sound_seconds
from mmprefix.media.image import read_picture
from mmprefix.media.kinds import kind_of
from mmprefix.reports.page import escape

SIDE = 320  # most pixels of a picture's side
SECONDS = 10.0  # of a clip
_RATE = 16_000  # most samples a second of a clip
_BINS, _COLUMNS = 96, 300  # of a spectrogram
_RANGE = 70.0  # decibels below the loudest that are shown
_RAMP = (  # place from dark to bright, and its colour
    (0.0, (12, 10, 40)),
    (0.35, (90, 25, 120)),
    (0.65, (225, 85, 60)),
    (0.85, (252, 180, 70)),
    (1.0, (255, 250, 210)),
)


def thumbnail(source: str) -> str:
    """HTML that shows the file ``source``: an img, an img and a player, or an empty text for other kinds.

    Raises InputError for a file that cannot be read.
    """
    kind = kind_of(source)
    if kind == "image":
        return _img("jpeg", jpeg(read_picture(source)), "input")
    if kind == "audio":
        values, rate = _clip(source)
        sound = f'<audio controls preload="metadata" src="{_uri("audio/ogg", ogg(values, rate))}"></audio>'
        return _img("png", spectrogram(values, rate), "spectrogram", ' class="sound"') + sound
    return ""


def jpeg(picture: Image.Image) -> bytes:
    """JPEG of ``picture`` with sides of at most ``SIDE``."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()


def spectrogram(values: NDArray[np.float32], rate: int) -> bytes:
    """PNG (``_BINS`` high) of log power over mel-like frequencies of samples (S,), in a palette of 64 colours."""
    window = 1024 if rate >= 16_000 else 512
    padded = np.pad(values, (0, max(0, window - len(values))))
    starts = np.linspace(0, len(padded) - window, min(_COLUMNS, max(2, len(padded) // (window // 4)))).astype(int)
    frames = np.stack([padded[start : start + window] for start in starts]) * np.hanning(window)
    power = np.abs(np.fft.rfft(frames)) ** 2  # (columns, window / 2 + 1)
    top = min(rate / 2, 8000.0)
    mels = np.linspace(0, 2595 * np.log10(1 + top / 700), _BINS + 1)
    edges = 700 * (10 ** (mels / 2595) - 1) / (rate / 2) * (power.shape[1] - 1)
    sums = np.concatenate([np.zeros((len(power), 1)), np.cumsum(power, axis=1)], axis=1)
    low = np.floor(edges[:-1]).astype(int)
    high = np.minimum(np.maximum(np.ceil(edges[1:]).astype(int), low + 1), power.shape[1])
    bands = (sums[:, high] - sums[:, low]) / (high - low)
    decibels = 10 * np.log10(np.maximum(bands, 1e-12))
    shades = np.clip((decibels - decibels.max()) / _RANGE + 1, 0, 1)
    picture = Image.fromarray((shades.T[::-1] * 63).astype(np.uint8), mode="P")
    picture.putpalette(_palette())
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _palette() -> list[int]:
    """Colours of 64 shades, from dark to bright."""
    places = np.linspace(0, 1, 64)
    at = [place for place, _ in _RAMP]
    channels = [np.interp(places, at, [colour[channel] for _, colour in _RAMP]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(int).ravel().tolist()


def ogg(values: NDArray[np.float32], rate: int) -> bytes:
    """Ogg Vorbis of samples (S,) at ``rate``."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(values, -1, 1), rate, format="OGG", subtype="VORBIS")
    return out.getvalue()


def _clip(source: str) -> tuple[NDArray[np.float32], int]:
    """First ``SECONDS`` of a sound (S,), at no more than ``_RATE`` samples a second."""
    end = SECONDS if sound_seconds(source) > SECONDS else None
    values, rate = read_samples(source, 0.0, end)
    if rate > _RATE:
        import soxr

        values, rate = soxr.resample(values, rate, _RATE), _RATE
    return np.asarray(values, dtype=np.float32), rate


def _img(kind: str, data: bytes, text: str, more: str = "") -> str:
    return f'<img{more} alt="{escape(text)}" loading="lazy" src="{_uri(f"image/{kind}", data)}">'


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
