"""A video (a file, a folder of numbered pictures, a list of pictures) → frames evenly spaced in time, and its length.

A file is decoded by PyAV (``mmprefix.media.video_pyav``), single pictures by Pillow. Pictures carry no time: a folder
has one picture a second, a ``FrameSequence`` the rate that it is given; ``start`` and ``end`` count in these seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image

from mmprefix.errors import InputError
from mmprefix.media.image import picture_size, read_picture
from mmprefix.media.source import IMAGE_SUFFIXES, FrameSequence, Source, name_of, open_source


class VideoHeader(NamedTuple):
    """Length of the wanted part in seconds, width and height in pixels, and the number of frames in the part.

    A file's header counts frames only by their average rate; once decoded, they are counted one by one.
    """

    seconds: float
    size: tuple[int, int]
    frames: int


class OpenVideo(Protocol):
    """An opened video: its whole length, its frame size, and its frames by time (seconds from the first frame)."""

    @property
    def seconds(self) -> float: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def rate(self) -> float: ...

    def frames_at(self, times: Sequence[float]) -> list[Image.Image]:
        """The frames shown at ``times`` (ascending), RGB and upright; a frame shown at several times comes once."""
        ...

    def count_frames(self, start: float, end: float) -> int:
        """Decode everything from ``start`` to ``end`` seconds; the number of frames."""
        ...


def read_frames(source: Source, count: int, start: float = 0.0, end: float | None = None) -> list[Image.Image]:
    """At most ``count`` frames (RGB, upright) from ``start`` to ``end`` seconds, evenly spaced in time.

    The part is cut into ``count`` slots of equal length; the frame shown at the middle of each slot is taken. A frame
    shown at several middles comes once, so a part with fewer than ``count`` frames gives fewer. An end beyond the
    video is the video's end. Raises InputError that names the source when it is missing, cut off, no video, or shorter
    than ``start``.
    """
    if count < 1:
        raise InputError(f"frames {count}: give a number from 1 on")
    with open_video(source) as video:
        first, last = _span(name_of(source), video.seconds, start, end)
        return video.frames_at([first + (slot + 0.5) * (last - first) / count for slot in range(count)])


def video_header(source: Source, start: float = 0.0, end: float | None = None, decode: bool = False) -> VideoHeader:
    """Length, size and number of frames from the header; with ``decode`` all frames of the part are decoded, too.

    Errors as in ``read_frames``; a fault inside the video shows only with ``decode``.
    """
    with open_video(source) as video:
        first, last = _span(name_of(source), video.seconds, start, end)
        frames = video.count_frames(first, last) if decode else max(1, round((last - first) * video.rate))
        return VideoHeader(last - first, video.size, frames)


@contextlib.contextmanager
def open_video(source: Source) -> Iterator[OpenVideo]:
    """``source`` opened as a video: a file's bytes go to PyAV, a folder and a sequence are pictures."""
    name = name_of(source)
    if isinstance(source, FrameSequence):
        yield PictureVideo(source, name)
    elif isinstance(source, str | Path) and os.path.isdir(source):
        yield PictureVideo(FrameSequence(pictures_in(source)), name)
    elif isinstance(source, str | Path | bytes):
        from mmprefix.media.video_pyav import open_video_file

        with open_source(source) as stream, open_video_file(stream, name) as video:
            yield video
    else:
        raise InputError(f"{name}: a video is wanted here: a file, a folder of pictures, or a FrameSequence")


def files_of(source: Source) -> list[str]:
    """The files that ``source`` is read from: itself, or the pictures of a folder or sequence, in order."""
    if isinstance(source, FrameSequence):
        return [str(picture) for picture in source.pictures if isinstance(picture, str | Path)]
    if not isinstance(source, str | Path):
        return []
    return [str(file) for file in pictures_in(source)] if os.path.isdir(source) else [str(source)]


def pictures_in(folder: str | Path) -> list[Path]:
    """The picture files in ``folder`` in order of the numbers in their names (2.png before 10.png)."""
    files = [file for file in Path(folder).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    return sorted(files, key=lambda file: [(int(part) if part.isdigit() else 0, part) for part in _split(file.stem)])


def _split(name: str) -> list[str]:
    return re.split(r"(\d+)", name)  # text, number, text ... in turn, so that positions compare like with like


def _span(name: str, seconds: float, start: float, end: float | None) -> tuple[float, float]:
    """The part from ``start`` to ``end`` inside a video of ``seconds``; InputError where it holds nothing."""
    if start < 0 or (end is not None and end <= start):
        raise InputError(f"{name}: start {start} s and end {end} s: give 0 <= start < end")
    if seconds <= 0:
        raise InputError(f"{name}: the video has length zero")
    if start >= seconds:
        raise InputError(f"{name}: start {start} s lies beyond the end of the video, {seconds:.3f} s")
    return start, seconds if end is None else min(end, seconds)


class PictureVideo:
    """Single pictures as a video: picture ``i`` is shown from ``i / rate`` to ``(i + 1) / rate`` seconds."""

    def __init__(self, sequence: FrameSequence, name: str) -> None:
        if not sequence.pictures:
            raise InputError(f"{name}: holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
        if sequence.rate <= 0:
            raise InputError(f"{name}: a rate of {sequence.rate} pictures a second; give a positive number")
        self.pictures, self.rate = sequence.pictures, sequence.rate

    @property
    def seconds(self) -> float:
        """The number of pictures over their rate."""
        return len(self.pictures) / self.rate

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first picture, from its header."""
        return picture_size(self.pictures[0])

    def frames_at(self, times: Sequence[float]) -> list[Image.Image]:
        """The pictures shown at ``times``, each once."""
        chosen = dict.fromkeys(self._index(time) for time in times)
        return [read_picture(self.pictures[index]) for index in chosen]

    def count_frames(self, start: float, end: float) -> int:
        """Decode the pictures shown between ``start`` and ``end``; their number."""
        shown = [index for index in range(self._index(start), len(self.pictures)) if index / self.rate < end]
        return len([read_picture(self.pictures[index]) for index in shown])

    def _index(self, time: float) -> int:
        return min(int(time * self.rate), len(self.pictures) - 1)
