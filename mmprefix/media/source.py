"""Input sources: a file, a member of an archive, or a value in memory; its name in errors, and its bytes as a stream.

Archives stay open, one handle a process.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

from mmprefix.errors import InputError
from mmprefix.trust.limits import require_below

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor


class Waveform(NamedTuple):
    """Samples in memory, mono (S,) or channels first (C, S), float in -1..1 or integers, and their rate in Hz."""

    values: np.ndarray | Tensor
    rate: int


@dataclass(frozen=True)
class FrameSequence:
    """A video given as single pictures in order (files, bytes or PIL images), ``rate`` pictures a second."""

    pictures: Sequence[str | Path | bytes | Image.Image]
    rate: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pictures", tuple(self.pictures))  # hashable: a source is a key in the feature cache


Source: TypeAlias = "str | Path | bytes | Image.Image | Waveform | FrameSequence | tuple[float, ...]"
"""A file, or a value in memory; the last kind of value is numbers. A string: nobody needs Pillow to read a manifest."""


def name_of(source: Source) -> str:
    """The name of ``source`` in error messages: its path, or "the given ..." for a value in memory."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, FrameSequence):
        first = name_of(source.pictures[0]) if source.pictures else "no picture"
        return f"the video of {len(source.pictures)} pictures ({first} ...)"
    if isinstance(source, tuple) and not isinstance(source, Waveform):
        return "the given numbers"
    kinds: dict[type, str] = {bytes: "the given bytes", Waveform: "the given waveform"}
    return kinds.get(type(source), "the given picture")


SEPARATOR = "::"
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})


def open_source(source: str | Path | bytes) -> BinaryIO:
    """A seekable stream of the bytes of ``source``: a file, a member of a zip archive, or bytes already in memory.

    Raises InputError that names the file (and the member) when it does not exist or cannot be opened.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    archive, member = split_member(source)
    if member is not None:
        return io.BytesIO(_read_member(archive, member))
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):  # a pipe or a device may have no end
            what = "is a directory" if os.path.isdir(source) else "is no regular file"
            raise InputError(f"{source}: {what}")
        return Path(source).open("rb")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{source}: {_reason(error)}") from error
    except ValueError as error:  # a name with a null byte
        raise InputError(f"{source}: no such file") from error


def missing(source: str | Path) -> str | None:
    """Reason why ``source`` cannot be opened, or None when the file (and the member of the archive) exists."""
    archive, member = split_member(source)
    if member is None:
        return None if os.path.isfile(source) else f"{source}: no such file"
    try:
        return None if member in _open_archive(archive)[1] else f"{archive}: the archive has no member {member!r}"
    except InputError as error:
        return str(error)


def split_member(source: str | Path) -> tuple[Path, str | None]:
    """Archive and member of ``archive.zip::member``; any other path, even with ``::`` in its name, and None."""
    text = str(source)
    if SEPARATOR not in text or os.path.exists(text):  # of names that no disk can hold it is False
        return Path(text), None
    archive, _, member = text.partition(SEPARATOR)
    return Path(archive), member


def _reason(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()


def _read_member(archive: Path, member: str) -> bytes:
    handle, names = _open_archive(archive)
    if member not in names:
        raise InputError(f"{archive}: the archive has no member {member!r}")
    require_below("bytes", handle.getinfo(member).file_size, f"{archive}{SEPARATOR}{member}")
    try:
        return handle.read(member)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{archive}{SEPARATOR}{member}: cannot be unpacked ({error})") from error


def _open_archive(archive: Path) -> tuple[zipfile.ZipFile, frozenset[str]]:
    try:
        state = archive.stat()
    except OSError as error:
        raise InputError(f"{archive}: {_reason(error)}") from error
    return _archive(str(archive), state.st_mtime_ns, state.st_size, os.getpid())


@lru_cache(maxsize=16)
def _archive(archive: str, changed: int, size: int, process: int) -> tuple[zipfile.ZipFile, frozenset[str]]:
    # A forked worker shares the file position of its parent, so each process opens its own handle (``process``), and
    # an archive that was written anew is opened anew (``changed``, ``size``). Reading is locked inside ZipFile.
    try:
        handle = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{archive}: not a zip archive that can be read ({error})") from error
    return handle, frozenset(handle.namelist())
