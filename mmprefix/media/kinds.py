"""Table of input kinds: image, audio, video, signals, text. A new kind is one row here, and an encoder that reads it.

A row says how a file of the kind is recognised and checked, what a manifest may hold in its column, and how messages
and the model card speak of it. The columns of a manifest are called after the kinds; a text may stand in any column.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from mmprefix.errors import InputError
from mmprefix.media.source import (
    IMAGE_SUFFIXES,
    FrameSequence,
    Source,
    Texts,
    Waveform,
    is_array,
    missing,
    open_source,
    read_text,
)


@dataclass(frozen=True)
class FileInfo:
    """Measures of one input: seconds (audio, video), width and height in pixels, frames of a video; or its fault."""

    seconds: float | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class InputKind:
    """One kind of input.

    Args:
        noun: the kind in messages, "a picture".
        inspect: (source, start, end in seconds, decode) → FileInfo; reads the header, with ``decode`` everything.
            Raises InputError for what cannot be read.
        example: width of the encoder's summary → Python source of an input, for the model card.
        suffixes: of file names, in lower case.
        magic: (offset, bytes) that files begin with.
        content: whether an open file is of this kind, where neither its suffix nor ``magic`` tells.
        in_memory: whether a value in memory is of this kind.
        has_time: ``start`` and ``end`` cut it, so they are part of its key in the feature store.
        cached: its features are worth a place in the feature store.
        lists: what a list in a manifest's column holds: "files", "numbers", "texts", or None where there may be no
            list.
        folders: a folder is one input.
        read_as: another kind that a file of this kind can be read as, where a model has no branch for this one.
    """

    noun: str
    inspect: Callable[[Source, float, float | None, bool], FileInfo]
    example: Callable[[int], str]
    suffixes: Collection[str] = ()
    magic: tuple[tuple[int, bytes], ...] = ()
    content: Callable[[BinaryIO], bool] = lambda stream: False
    in_memory: Callable[[object], bool] = lambda value: False
    has_time: bool = False
    cached: bool = True
    lists: Literal["files", "numbers", "texts"] | None = None
    folders: bool = False
    read_as: str | None = None

    def missing(self, path: str | Path) -> str | None:
        """Reason why ``path`` cannot be opened as this kind, or None where it exists."""
        return None if self.folders and os.path.isdir(path) else missing(path)


# The readers are imported where they run: a manifest can be read, and a picture captioned, without the audio libraries.


def _inspect_image(source: Source, start: float, end: float | None, decode: bool) -> FileInfo:
    from mmprefix.media.image import picture_size, read_picture

    return FileInfo(size=read_picture(source).size if decode else picture_size(source))


def _inspect_audio(source: Source, start: float, end: float | None, decode: bool) -> FileInfo:
    from mmprefix.media.audio import read_samples, sound_seconds

    if not decode:
        return FileInfo(seconds=sound_seconds(source, start, end))
    values, rate = read_samples(source, start, end)
    return FileInfo(seconds=len(values) / rate)


def _inspect_video(source: Source, start: float, end: float | None, decode: bool) -> FileInfo:
    from mmprefix.media.video import video_header

    header = video_header(source, start, end, decode)
    return FileInfo(header.seconds, header.size, header.frames)


def _inspect_signals(source: Source, start: float, end: float | None, decode: bool) -> FileInfo:
    from mmprefix.media.numbers import read_numbers

    read_numbers(source)
    return FileInfo()


def _inspect_text(source: Source, start: float, end: float | None, decode: bool) -> FileInfo:
    read_text(source)
    return FileInfo()


def _is_picture(value: object) -> bool:
    """True for a PIL image (Pillow is loaded already where there is one) and an array (Y X) or (Y X 3)."""
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(value, pillow.Image):
        return True
    return is_array(value) and len(cast(Any, value).shape) in (2, 3)


def _holds_picture(stream: BinaryIO) -> bool:
    from mmprefix.media.image import holds_picture

    return holds_picture(stream)


KINDS: Mapping[str, InputKind] = {
    "image": InputKind(
        noun="a picture",
        inspect=_inspect_image,
        example=lambda width: '"picture.jpg"',
        suffixes=IMAGE_SUFFIXES,
        magic=(
            *((0, start) for start in (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")),
            (8, b"WEBP"),
        ),
        content=_holds_picture,
        in_memory=_is_picture,
    ),
    "audio": InputKind(
        noun="a sound",
        inspect=_inspect_audio,
        example=lambda width: '"sound.wav"',
        suffixes=frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff"}),
        in_memory=lambda value: isinstance(value, Waveform),
        has_time=True,
    ),
    "video": InputKind(
        noun="a video",
        inspect=_inspect_video,
        example=lambda width: '"clip.mp4"',
        suffixes=frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv"}),
        magic=(
            *((4, b"ftyp" + brand) for brand in (b"isom", b"mp4", b"avc1", b"qt  ", b"M4V ")),
            (0, b"\x1aE\xdf\xa3"),  # Matroska and WebM
            (8, b"AVI "),
        ),
        in_memory=lambda value: isinstance(value, FrameSequence),
        has_time=True,
        lists="files",
        folders=True,
        read_as="audio",  # by its sound track
    ),
    "signals": InputKind(
        noun="a row of numbers",
        inspect=_inspect_signals,
        example=lambda width: f"[{', '.join(['0.5'] * width)}]",
        suffixes=frozenset({".json", ".npy"}),
        cached=False,
        lists="numbers",
    ),
    "text": InputKind(
        noun="a text",
        inspect=_inspect_text,
        example=lambda width: '"a few words"',
        in_memory=lambda value: isinstance(value, Texts),  # a bare string is the path of a file
        lists="texts",
    ),
}
FILE_KINDS = tuple(name for name, kind in KINDS.items() if kind.lists != "texts")
"""Kinds after which columns of a manifest are called; a branch of texts reads the column of the branch's own name."""


def kind_of(source: object) -> str | None:
    """The kind of ``source`` by its type, its suffix, or its first bytes; None where these do not tell.

    Raises InputError for a file that is missing and a value of another type.
    """
    for name, kind in KINDS.items():
        if kind.in_memory(source):
            return name
    if is_numbers(source):
        return "signals"
    if isinstance(source, bytes):
        return _kind_of_content(source)
    if not isinstance(source, str | Path):
        shape = f" and shape {tuple(cast(Any, source).shape)}" if is_array(source) else ""
        raise InputError(
            f"an input of type {type(source).__name__}{shape}: give a file, bytes, a PIL image, an array of a picture "
            "(Y X 3), mmprefix.Waveform(values, rate) or mmprefix.FrameSequence(pictures)"
        )
    if os.path.isdir(source):
        return next(name for name, kind in KINDS.items() if kind.folders)
    if reason := missing(source):
        raise InputError(reason)
    suffix = Path(source).suffix.lower()
    by_suffix = next((name for name, kind in KINDS.items() if suffix in kind.suffixes), None)
    if by_suffix is not None:
        return by_suffix
    return _kind_of_content(source)


def is_numbers(value: object) -> bool:
    """True for a row of numbers, which is one input, not several."""
    if not isinstance(value, list | tuple) or isinstance(value, Waveform) or not value:
        return False
    return all(isinstance(item, int | float) and not isinstance(item, bool) for item in cast("list[Any]", value))


def _kind_of_content(source: str | Path | bytes) -> str | None:
    with open_source(source, empty=True) as stream:
        head = stream.read(16)
        for name, kind in KINDS.items():
            if any(head.startswith(start, offset) for offset, start in kind.magic):
                return name
        return next((name for name, kind in KINDS.items() if kind.content(stream)), None)
