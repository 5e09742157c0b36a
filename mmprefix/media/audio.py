"""Sound: a file, bytes or a waveform in memory → one channel of samples at the wanted rate.

Files are decoded by libsndfile (wav, flac, ogg, mp3 ...) and resampled by soxr; PyAV, where it is installed, decodes
the formats that libsndfile cannot open (m4a, aac, the sound track of a video).

libsndfile says nothing of a WAV or Ogg file that was cut off, so their own headers are read. A WAV header announces its
length (RIFF: https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/WAVE.html); the last page of an Ogg stream
carries an end mark (RFC 3533, section 6). FLAC and MP3 are caught by counting decoded frames.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import soundfile
import soxr

from mmprefix.errors import InputError
from mmprefix.media.pyav import is_installed
from mmprefix.media.source import Source, Waveform, name_of, open_source
from mmprefix.trust.limits import require_below, require_rate

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 20  # frames decoded at a time: a long stereo file is mixed down as it is read
_UNKNOWN_LENGTH = 1 << 40  # libsndfile announces the largest integer when a header does not hold the length
_SOUND_ERRORS = (soundfile.SoundFileError, TypeError, ValueError)


def read_waveform(source: Source, rate: int, start: float = 0.0, end: float | None = None) -> Tensor:
    """The sound in ``source`` as one channel (S,), float32, at ``rate`` Hz.

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
        values, rate = _mono(source), source.rate
        first, count = _part(name, len(values), rate, start=start, end=end)
        values = values[first : first + count]
    else:
        with _sound(source) as sound:
            rate = sound.samplerate
            values = _decode(sound, name, *_part(name, sound.frames, rate, start=start, end=end))
    if not np.isfinite(values).all():
        raise InputError(f"{name}: holds samples that are no finite numbers (NaN or infinity)")
    return values, rate


def sound_seconds(source: Source, start: float = 0.0, end: float | None = None) -> float:
    """Length in seconds of the wanted part of ``source``, from its header. Errors as in ``read_waveform``."""
    if isinstance(source, Waveform):
        return _part(name_of(source), np.shape(source.values)[-1], source.rate, start=start, end=end)[1] / source.rate
    with _sound(source) as sound:
        return _part(name_of(source), sound.frames, sound.samplerate, start=start, end=end)[1] / sound.samplerate


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


def _decode(sound: Any, name: str, first: int, count: int) -> np.ndarray:
    """``count`` frames from ``first`` on, mixed down to one channel (S,)."""
    blocks: list[np.ndarray] = []
    left = count
    if count < _UNKNOWN_LENGTH:
        require_below("seconds", count / sound.samplerate, name)
    try:
        sound.seek(first)
        while left > 0:
            block = sound.read(min(left, BLOCK), dtype="float32", always_2d=True)
            if not len(block):
                break
            blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
            left -= len(block)
            require_below("seconds", (count - left) / sound.samplerate, name)
    except InputError:
        raise
    except _SOUND_ERRORS as error:
        raise InputError(f"{name}: the sound cannot be decoded; is it cut off? ({error})") from error
    if left and count < _UNKNOWN_LENGTH:
        raise InputError(f"{name}: the sound is cut off: {count} frames announced, {count - left} could be read")
    if not blocks:
        raise InputError(f"{name}: the sound has length zero")
    return np.concatenate(blocks)


@contextlib.contextmanager
def _sound(source: Source) -> Iterator[Any]:
    """``source`` as an open ``soundfile.SoundFile``; InputError for a file that is cut off."""
    name = name_of(source)
    if not isinstance(source, str | Path | bytes):
        raise InputError(f"{name}: a sound is wanted here")
    with open_source(source) as stream:
        try:
            reason = truncation_reason(stream)
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error
        if reason:
            raise InputError(f"{name}: the sound is cut off: {reason}")
        try:
            sound = soundfile.SoundFile(stream)
        except _SOUND_ERRORS as error:
            sound = _decode_with_av(stream, name, error)
        with contextlib.closing(sound):
            require_rate(sound.samplerate, name)
            yield sound


def _mono(waveform: Waveform) -> np.ndarray:
    """Samples (S,) float32 in -1..1 from samples (S,) or (C, S) of any type."""
    name, values = name_of(waveform), waveform.values
    values = values if isinstance(values, np.ndarray) else np.asarray(values.detach().cpu())
    if waveform.rate <= 0:
        raise InputError(f"{name}: a rate of {waveform.rate} Hz; give a positive number")
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[0] > 32):
        raise InputError(f"{name}: shape {values.shape}; give (S,) or channels first (C, S)")
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        middle = 0 if values.dtype.kind == "i" else (info.max + 1) // 2
        values = (values.astype(np.float64) - middle) / (info.max + 1 - middle)
    elif values.dtype.kind != "f":
        raise InputError(f"{name}: samples of type {values.dtype}; give floats in -1..1 or integers")
    return (values if values.ndim == 1 else values.mean(axis=0)).astype(np.float32)


def _decode_with_av(stream: BinaryIO, name: str, refusal: Exception) -> soundfile.SoundFile:
    """The sound in ``stream``, decoded by PyAV and re-opened as a sound file."""
    if not is_installed():
        raise InputError(
            f"{name}: not a sound that can be read (wav, flac, ogg, mp3; m4a and aac by PyAV: "
            'pip install "mmprefix[av]")'
        ) from refusal
    from mmprefix.media.audio_pyav import decode

    return decode(stream, name)


_LARGEST_PAGE = 27 + 255 + 255 * 255  # bytes: header, lacing values, body
_LAST_PAGE = 0x04  # the flag of the page that ends a stream
_UNKNOWN = (0, 0xFFFFFFFF)  # lengths that a program writes into a WAV header when it cannot go back to correct it


def truncation_reason(stream: BinaryIO) -> str | None:
    """Reason why the sound in ``stream`` is cut off, or None when its bytes show none. Rewinds the stream."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    head = stream.read(12)
    reason = None
    if head[:4] == b"OggS":
        reason = _ogg(stream, size)
    elif head[:4] == b"RIFF" and head[8:] == b"WAVE":
        reason = _wav(stream, size)
    stream.seek(0)
    return reason


def _wav(stream: BinaryIO, size: int) -> str | None:
    position = 12
    while position + 8 <= size:
        stream.seek(position)
        kind, length = struct.unpack("<4sI", stream.read(8))
        if kind == b"data":
            whole = length in _UNKNOWN or position + 8 + length <= size
            return None if whole else f"its header announces {length} bytes of sound, {size - position - 8} are there"
        position += 8 + length + length % 2
    return "its header is there, its sound is not"


def _ogg(stream: BinaryIO, size: int) -> str | None:
    stream.seek(max(0, size - _LARGEST_PAGE))
    tail = stream.read()
    start = tail.rfind(b"OggS")
    page = tail[start:] if start >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return "its last page is not whole"
    if len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "its last page is not whole"
    return None if page[5] & _LAST_PAGE else "its last page has no end mark"
