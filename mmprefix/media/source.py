"""Input sources: a file, a member of an archive, or a value in memory; its name in errors, and its bytes as a stream.

Archives stay open, one handle a process.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, TypeGuard

from mmprefix.errors import InputError, require_text
from mmprefix.trust.limits import require_below

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor


class Waveform(NamedTuple):
    """Samples in memory and their rate in Hz.

    ``values`` (S,), (C, S) or (S, C): NumPy, torch or a list, floats in -1..1 or integers of 8, 16 or 32 bits. Another
    scale is refused when they are read; see ``mmprefix.media.audio.read_waveform``.
    """

    values: np.ndarray | Tensor | Sequence[float]
    rate: int


@dataclass(frozen=True)
class FrameSequence:
    """A video given as single pictures in order (files, bytes or PIL images), ``rate`` pictures a second."""

    pictures: Sequence[str | Path | bytes | Image.Image]
    rate: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pictures", tuple(self.pictures))  # hashable: a source is a key in the feature cache


@dataclass(frozen=True)
class Texts:
    """One text, or several that are read as one (a user's keywords); a bare string is the path of a file."""

    texts: tuple[str, ...]

    @property
    def joined(self) -> str:
        """All texts in their order, ". " between them, without the empty ones."""
        return ". ".join(text.strip() for text in self.texts if text.strip())


Source: TypeAlias = (
    "str | Path | bytes | Image.Image | np.ndarray | Tensor | Waveform | FrameSequence | Texts | tuple[float, ...]"
)
"""A file, or a value in memory: arrays are pictures, the last kind of value is numbers.

A string: nobody needs Pillow to read a manifest.
"""


def name_of(source: Source) -> str:
    """The name of ``source`` in error messages: its path, or "the given ..." for a value in memory."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, FrameSequence):
        first = name_of(source.pictures[0]) if source.pictures else "no picture"
        return f"the video of {len(source.pictures)} pictures ({first} ...)"
    if isinstance(source, Texts):
        return f"the text {source.joined[:60]!r}"
    if isinstance(source, tuple) and not isinstance(source, Waveform):
        return "the given numbers"
    kinds: dict[type, str] = {bytes: "the given bytes", Waveform: "the given waveform"}
    return kinds.get(type(source), "the given picture")


def read_text(source: Source) -> str:
    """Text of ``source``, several joined by ". ".

    Raises InputError for an empty one, for half a character, and for what is no ``Texts``.
    """
    if not isinstance(source, Texts):
        raise InputError(f"{name_of(source)}: is no text; give a text, or a list of texts, by branch name")
    if not source.joined:
        raise InputError("the given text is empty; give words, or leave it out")
    require_text("the given text", source.joined)
    return source.joined


SEPARATOR = "::"
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".tga", ".ico", ".icns", ".cur", ".pcx", ".dcx", ".dds", ".qoi", ".sgi", ".ras", ".psd", ".xbm", ".xpm"),
    }
)


def open_source(source: str | Path | bytes, *, empty: bool = False) -> BinaryIO:
    """A seekable stream of the bytes of ``source``: a file, a member of a zip archive, or bytes already in memory.

    Raises InputError that names the file (and the member) when it does not exist, cannot be opened, or holds no byte,
    which no picture or sound does; ``empty`` allows it.
    """
    stream = _opened(source)
    try:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
    except OSError as error:  # files of the kernel have no end
        stream.close()
        raise InputError(f"{name_of(source)}: {_reason(error)}") from error
    if not size and not empty:
        stream.close()
        raise InputError(f"{name_of(source)}: is empty, without a single byte")
    return stream


def _opened(source: str | Path | bytes) -> BinaryIO:
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


def stream_view(
    stream: BinaryIO, start: int, end: int, *, patches: Mapping[int, bytes] | None = None, head: bytes = b""
) -> BinaryIO:
    """``head`` and the bytes ``start`` to ``end`` of ``stream`` as a stream of its own.

    ``patches`` (position → bytes) stand in the place of the bytes at these positions.
    """
    return io.BufferedReader(_View(stream, start, end, patches={**(patches or {})}, head=head))


class _View(io.RawIOBase):
    def __init__(self, stream: BinaryIO, start: int, end: int, *, patches: dict[int, bytes], head: bytes) -> None:
        self._stream, self._start, self._size = stream, start - len(head), end - start + len(head)
        self._patches, self._head = patches | ({0: head} if head else {}), len(head)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        before = min(wanted, max(0, self._head - self._position))  # bytes of the head, which a patch fills
        self._stream.seek(self._start + self._position + before)
        block = bytearray(before) + self._stream.read(wanted - before)
        for place, patch in self._patches.items():
            for at, byte in enumerate(patch, place - self._position):
                if 0 <= at < len(block):
                    block[at] = byte
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)


def is_url(value: object) -> TypeGuard[str]:
    """True for a text that begins as an address of the web does."""
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def is_array(value: object) -> bool:
    """True for a NumPy array and a torch tensor; neither library is imported to know."""
    modules = (sys.modules.get("numpy"), sys.modules.get("torch"))
    kinds = [getattr(module, name) for module, name in zip(modules, ("ndarray", "Tensor"), strict=True) if module]
    return isinstance(value, tuple(kinds))


def to_array(values: Any) -> np.ndarray:
    """``values`` (NumPy, torch of any type and device, a list) as an array; errors are those of NumPy and torch."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) in ("torch.bfloat16", "torch.float16") else values
        return values.numpy()
    return np.asarray(values)


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
    except Exception as error:  # of zipfile and of each way to compress
        raise InputError(f"{archive}{SEPARATOR}{member}: cannot be unpacked ({error})") from error


def _open_archive(archive: Path) -> tuple[zipfile.ZipFile, frozenset[str]]:
    try:
        state = archive.stat()
    except OSError as error:
        raise InputError(f"{archive}: {_reason(error)}") from error
    except ValueError as error:  # a name with a null byte, or half a character
        raise InputError(f"{archive}: no such file") from error
    return _archive(str(archive), state.st_mtime_ns, state.st_size, os.getpid())


@lru_cache(maxsize=16)
def _archive(archive: str, changed: int, size: int, process: int) -> tuple[zipfile.ZipFile, frozenset[str]]:
    # A forked worker shares the file position of its parent, so each process opens its own handle (``process``), and
    # an archive that was written anew is opened anew (``changed``, ``size``). Reading is locked inside ZipFile.
    try:
        handle = zipfile.ZipFile(archive)
        return handle, frozenset(handle.namelist())
    except Exception as error:  # zipfile takes what the file says for granted
        raise InputError(f"{archive}: not a zip archive that can be read ({error})") from error
