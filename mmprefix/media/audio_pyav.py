"""Sound that libsndfile cannot open (m4a, aac, the sound track of a video ...), decoded by PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mmprefix.errors import InputError
from mmprefix.media.pyav import open_container
from mmprefix.trust.limits import require_below, require_rate

if TYPE_CHECKING:
    from av.container import InputContainer


@dataclass(frozen=True)
class DecodedSound:
    """One channel of a sound in memory: ``values`` from frame ``offset`` on, of ``frames`` at ``rate`` Hz."""

    rate: int
    frames: int
    offset: int
    values: np.ndarray

    def read(self, first: int, count: int) -> np.ndarray:
        """``count`` frames (S,) from ``first`` on."""
        return self.values[first - self.offset :][:count]

    def close(self) -> None:
        """Nothing: the container is closed."""


def decode(stream: BinaryIO, name: str, start: float = 0.0, until: float | None = None) -> DecodedSound:
    """The sound in ``stream``, mixed down; what lies before ``start`` or behind ``until`` seconds is not kept.

    Raises InputError that names the file when PyAV cannot read it either, or the part is too long.
    """
    with open_container(stream, name, "a sound") as container:
        return _decode(container, name, start, until)


def _decode(container: InputContainer, name: str, start: float, until: float | None) -> DecodedSound:
    import av

    if not container.streams.audio:
        raise InputError(f"{name}: holds no sound")
    track = container.streams.audio[0]
    if getattr(track, "codec_context", None) is None:
        raise InputError(f"{name}: its sound is of a codec that FFmpeg does not know, or the header is damaged")
    planar = av.AudioResampler(format="fltp", layout=track.layout, rate=track.rate)
    require_rate(track.rate, name)
    blocks: list[np.ndarray] = []
    frames = offset = 0
    for frame in container.decode(track):
        for part in planar.resample(frame):
            block = part.to_ndarray()  # (C S)
            frames += block.shape[1]
            if frames <= start * track.rate:
                offset = frames
                continue
            blocks.append(block.mean(axis=0, dtype=np.float32))
            require_below("seconds", (frames - offset) / track.rate, name)
        if until is not None and frames >= until * track.rate + 1:
            break
    tail = [part.to_ndarray().mean(axis=0, dtype=np.float32) for part in planar.resample(None)]
    values = np.concatenate([*blocks, *tail, np.zeros(0, np.float32)])
    return DecodedSound(track.rate, offset + len(values), offset, values)
