"""Sound: a file, bytes or a waveform in memory → one channel of samples at the wanted rate.

Files are decoded by ``mmprefix.media.sound_file`` and resampled by soxr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import soxr

from mmprefix.errors import InputError
from mmprefix.media.sound_file import open_sound
from mmprefix.media.source import Source, Waveform, name_of, to_array
from mmprefix.trust.limits import MIN_RATE, require_below

if TYPE_CHECKING:
    from torch import Tensor

MAX_CHANNELS = 32
_LOUDEST = 32.0  # of floats: a limiter that was left out gives 2 or 4, values of 16 bits give hundreds


def read_waveform(source: Source, rate: int, start: float = 0.0, end: float | None = None) -> Tensor:
    """The sound in ``source`` as one channel (S,), float32, at ``rate`` Hz.

    A ``Waveform`` holds floats in -1..1, or integers over the range of their type (8, 16 or 32 bits). Values that tell
    of another scale are refused, never taken at face value: floats beyond 32 or whole numbers beyond 1, int32 with
    values of 16 bits, any 64 bits.

    ``start`` and ``end`` in seconds take a part (an end beyond the file is the file's end); only it is decoded.
    Raises InputError that names the file when it is missing, cut off, no sound, or has no sample in that part.
    """
    import torch

    if rate <= 0:
        raise InputError(f"a rate of {rate} Hz: give a positive number")
    values, own = read_samples(source, start, end)
    if own != rate:
        values = soxr.resample(values, own, rate, quality="HQ")
    if not len(values):
        raise InputError(f"{name_of(source)}: too short for one sample at {rate} Hz")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def read_samples(source: Source, start: float = 0.0, end: float | None = None) -> tuple[np.ndarray, int]:
    """Samples (S,), float32, before resampling, and their rate in Hz. Arguments and errors as in ``read_waveform``."""
    name = name_of(source)
    if isinstance(source, Waveform):
        values, rate = _samples(source), _rate(source)
        first, count = _part(name, len(values), rate, start=start, end=end)
        require_below("seconds", count / rate, name)
        _require_width(values, name)
        values = _mono(values[first : first + count], name)
    else:
        with open_sound(source, start, end) as sound:
            rate = sound.rate
            values = sound.read(*_part(name, sound.frames, rate, start=start, end=end))
    if not np.isfinite(values).all():
        raise InputError(f"{name}: holds samples that are no finite numbers (NaN or infinity)")
    _require_scale(values, name)
    return values, rate


def sound_seconds(source: Source, start: float = 0.0, end: float | None = None) -> float:
    """Length in seconds of the wanted part of ``source``, from its header. Errors as in ``read_waveform``."""
    if isinstance(source, Waveform):
        rate = _rate(source)
        return _part(name_of(source), len(_samples(source)), rate, start=start, end=end)[1] / rate
    with open_sound(source, start, end) as sound:
        return _part(name_of(source), sound.frames, sound.rate, start=start, end=end)[1] / sound.rate


def _part(name: str, frames: int, rate: int, *, start: float, end: float | None) -> tuple[int, int]:
    """First frame of the part from ``start`` to ``end`` seconds, and its number of frames."""
    if start < 0 or (end is not None and end <= start):
        raise InputError(f"{name}: start {start} s and end {end} s: give 0 <= start < end")
    if frames <= 0:
        raise InputError(f"{name}: the sound has length zero")
    first = round(min(start * rate, frames))
    last = frames if end is None else round(min(end * rate, frames))
    if first >= frames:
        raise InputError(f"{name}: start {start} s lies beyond the end of the sound, {frames / rate:.3f} s")
    if last <= first:
        raise InputError(f"{name}: no sample lies between start {start} s and end {end} s")
    return first, last - first


def _rate(waveform: Waveform) -> int:
    """Rate of ``waveform`` in Hz; InputError for anything but a positive whole number."""
    name, rate = name_of(waveform), waveform.rate
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not 0 < rate < 1e9 or rate % 1:
        advice = "give a positive whole number, as in mmprefix.Waveform(values, 16000)"
        raise InputError(f"{name}: a rate of {rate} Hz; {advice}")
    if rate < MIN_RATE:
        raise InputError(f"{name}: a rate of {rate} Hz; a sound has {MIN_RATE} Hz or more")
    return int(rate)


def _samples(waveform: Waveform) -> np.ndarray:
    """Values of ``waveform`` as (S, C), of whichever type: the axis of at most 32 channels comes last."""
    name, values = name_of(waveform), waveform.values
    try:
        values = to_array(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: its values are no array of numbers ({error})") from error
    if values.ndim == 1 or (values.ndim == 2 and not values.size):
        return values.reshape(-1, 1)
    if values.ndim != 2 or min(values.shape) > MAX_CHANNELS:
        raise InputError(f"{name}: shape {values.shape}; give (S,), channels first (C, S), or (S, C)")
    return values.T if values.shape[0] <= values.shape[1] else values


def _mono(values: np.ndarray, name: str) -> np.ndarray:
    """Samples (S, C) of any type → their mean over C, (S,) float32 in -1..1."""
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        middle = 0 if values.dtype.kind == "i" else (info.max + 1) // 2
        values = (values.astype(np.float64) - middle) / (info.max + 1 - middle)
    elif values.dtype.kind != "f":
        raise InputError(f"{name}: samples of type {values.dtype}; give floats in -1..1 or integers")
    return values.mean(axis=1).astype(np.float32)


def _require_width(values: np.ndarray, name: str) -> None:
    """Raise InputError for integers of more than 16 bits that hold values of 16 bits: their loudness is not known."""
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        raise InputError(f"{name}: samples of type {values.dtype}; give int16, int32, or floats in -1..1")
    if values.dtype == np.int32 and values.size and 0 < max(-int(values.min()), int(values.max())) <= 1 << 15:
        raise InputError(
            f"{name}: samples of type int32 with values of 16 bits; give int16 (values.astype('int16')), "
            "or floats in -1..1"
        )


def _require_scale(values: np.ndarray, name: str) -> None:
    """Raise InputError for floats that are integers in truth: louder than any sound, or whole numbers beyond 1."""
    peak = float(np.abs(values).max(initial=0.0))
    if peak > _LOUDEST or (peak > 1.0 and not np.any(values % 1)):
        raise InputError(
            f"{name}: samples as large as {peak:,.0f}; floats are in -1..1. "
            "Divide by 32768 where they come from 16 bits, or give the integers"
        )
