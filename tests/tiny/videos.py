"""Small videos made by PyAV: frames differ, so that each one shows its position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

SIZE = (64, 48)  # width and height in pixels
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".mov": "mpeg4", ".avi": "mpeg4", ".webm": "libvpx", ".ts": "libx264"}


def frame(number: int, count: int, seed: int = 0) -> Image.Image:
    """Frame ``number`` of ``count``: a bar that moves to the right over a background that brightens."""
    pixels = np.full((SIZE[1], SIZE[0], 3), round(30 + 180 * number / count), np.uint8)
    pixels[:, : round(SIZE[0] * (number + 1) / count)] = np.random.default_rng(seed).integers(0, 256, 3)
    return Image.fromarray(pixels)


def save_video(
    file: Path,
    *,
    count: int = 40,
    rate: int = 10,
    key_every: int = 12,
    seed: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video of ``count`` frames at ``rate`` a second, with a key frame every ``key_every`` frames, to ``file``.

    The codec follows from the suffix; ``options`` are those of the container (``{"movflags": "faststart"}``).
    """
    with av.open(str(file), "w", options=options or {}) as container:
        track: Any = container.add_stream(CODECS[file.suffix], rate=rate)
        track.width, track.height, track.pix_fmt, track.gop_size = *SIZE, "yuv420p", key_every
        for number in range(count):
            container.mux(track.encode(av.VideoFrame.from_image(frame(number, count, seed))))
        container.mux(track.encode())
    return file


def decoded(file: Path) -> tuple[list[Image.Image], list[float]]:
    """All frames of ``file`` in order, decoded by PyAV, and the time of each relative to the first."""
    with av.open(str(file)) as container:
        frames = list(container.decode(video=0))
    times = [float(picture.time or 0.0) for picture in frames]
    return [picture.to_image() for picture in frames], [time - times[0] for time in times]


def save_pictures(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write ``count`` numbered pictures (1.png, 2.png ... 10.png) to ``folder``; return them in order."""
    folder.mkdir(parents=True)
    files = [folder / f"{number + 1}.png" for number in range(count)]
    for number, file in enumerate(files):
        frame(number, count, seed).save(file)
    return files
