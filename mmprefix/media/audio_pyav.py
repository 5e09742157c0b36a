"""Sound that libsndfile cannot open (m4a, aac, mp4, wma ...), decoded by PyAV; needs the extra ``mmprefix[audio]``."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import soundfile

from mmprefix.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType


def decode(stream: BinaryIO, name: str) -> soundfile.SoundFile:
    """All of the sound in ``stream``, re-opened as a sound file of 32-bit floats in memory.

    One shape for both decoders: what reads a part of a file need not know who decoded it.
    Raises InputError that names the file when PyAV cannot read it either.
    """
    import av  # pyright: ignore[reportMissingImports]

    stream.seek(0)
    try:
        with av.open(stream) as container:
            blocks, rate = _blocks(av, container)
            samples = np.concatenate(blocks)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise InputError(f"{name}: not a sound that can be read ({error})") from error
    memory = io.BytesIO()
    soundfile.write(memory, samples, rate, format="WAV", subtype="FLOAT")
    memory.seek(0)
    return soundfile.SoundFile(memory)


def _blocks(av: ModuleType, container: Any) -> tuple[list[np.ndarray], int]:
    """Decoded frames (S, C) float32 and their rate in Hz."""
    track = container.streams.audio[0]
    planar = av.AudioResampler(format="fltp", layout=track.layout, rate=track.rate)
    frames = [part for frame in container.decode(track) for part in planar.resample(frame)]
    return [frame.to_ndarray().T for frame in frames + planar.resample(None)], track.rate
