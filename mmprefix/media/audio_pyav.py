"""Sound that libsndfile cannot open (m4a, aac, the sound track of a video ...), decoded by PyAV."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile

from mmprefix.media.pyav import open_container

if TYPE_CHECKING:
    from av.container import InputContainer


def decode(stream: BinaryIO, name: str) -> soundfile.SoundFile:
    """All of the sound in ``stream``, re-opened as a sound file of 32-bit floats in memory.

    Both decoders give one type: a caller that reads a part of a file need not know which decoder ran.
    Raises InputError that names the file when PyAV cannot read it either.
    """
    with open_container(stream, name, "a sound") as container:
        blocks, rate = _blocks(container)
        samples = np.concatenate(blocks)
    memory = io.BytesIO()
    soundfile.write(memory, samples, rate, format="WAV", subtype="FLOAT")
    memory.seek(0)
    return soundfile.SoundFile(memory)


def _blocks(container: InputContainer) -> tuple[list[np.ndarray], int]:
    """Decoded frames (S, C) float32 and their rate in Hz."""
    import av

    track = container.streams.audio[0]
    planar = av.AudioResampler(format="fltp", layout=track.layout, rate=track.rate)
    frames = [part for frame in container.decode(track) for part in planar.resample(frame)]
    return [frame.to_ndarray().T for frame in frames + planar.resample(None)], track.rate
