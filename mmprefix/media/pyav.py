"""PyAV (FFmpeg): sound and video in containers that neither libsndfile nor Pillow reads; the extra ``mmprefix[av]``.

FFmpeg reads what is there of a file that is cut off and says little of the rest, so lengths are compared with the file
first. Layouts: MP4, M4A and MOV are atoms (length, kind, body) of ISO/IEC 14496-12, the raw AAC of a stream frames of
ADTS, https://wiki.multimedia.cx/index.php/ADTS.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from mmprefix.errors import InputError
from mmprefix.media.sound_headers import CutOffError

if TYPE_CHECKING:
    from av.container import InputContainer

# A playlist (HLS, DASH, concat) names other files and addresses, and FFmpeg would open them: a file may name no other.
_OPTIONS = {"protocol_whitelist": "none"}
_FIRST_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_SPARE = (b"free", b"skip", b"wide")  # atoms whose bodies say nothing
_INDEX = (b"moov", b"moof")  # of a whole file, and of a part of one that is streamed


def is_installed() -> bool:
    """True where PyAV can be imported."""
    return importlib.util.find_spec("av") is not None


@contextlib.contextmanager
def open_container(stream: BinaryIO, name: str, wanted: str) -> Iterator[InputContainer]:
    """The container in ``stream``, opened for reading.

    Raises InputError where PyAV is missing, and, around the whole ``with`` block, for what FFmpeg cannot read or
    decode; ``name`` is the source in the message, ``wanted`` what it should be ("a video (mp4, webm, mkv)").
    """
    if not is_installed():
        raise InputError(f'{name}: {wanted} is read by PyAV, which is not installed: pip install "mmprefix[av]"')
    import av
    from av.error import FFmpegError

    try:
        _require_whole(stream)
        stream.seek(0)
        with av.open(stream, "r", options=_OPTIONS) as container:
            yield container
    except InputError:
        raise
    except CutOffError as error:
        raise InputError(f"{name}: {wanted.partition(' (')[0]} that is cut off: {error}") from error
    except (FFmpegError, OSError, ValueError, IndexError) as error:
        # The text of an FFmpegError or OSError repeats the path of the open stream: only its reason is given.
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: not {wanted} that can be read, or cut off ({reason})") from error


def _require_whole(stream: BinaryIO) -> None:
    """Raise CutOffError for MP4 and its like, and for ADTS, where a length goes beyond the end of the file."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    head = stream.read(8)
    if head[4:] in _FIRST_ATOMS:
        _require_atoms(stream, size)
    elif _adts_length(head) and _adts_length(_read(stream, _adts_length(head), 7)):
        _require_frames(stream, size)


def _require_atoms(stream: BinaryIO, size: int) -> None:
    position, kinds = 0, set[bytes]()
    while position + 8 <= size:
        length, kind = struct.unpack(">I4s", _read(stream, position, 8))
        if length == 1:  # a length of 64 bits follows
            (length,) = struct.unpack(">Q", _read(stream, position + 8, 8).ljust(8, b"\xff"))
        if not length:  # to the end of the file
            length = size - position
        if length < 8:
            return  # no atoms: FFmpeg says what is wrong
        if position + length > size and kind not in _SPARE:
            name = kind.decode("ascii", "replace")
            raise CutOffError(f"its atom {name!r} has {length} bytes, {size - position} are there")
        kinds.add(kind)
        position += length
    if not kinds.intersection(_INDEX):
        raise CutOffError("its index, the atom 'moov', is not there")


def _require_frames(stream: BinaryIO, size: int) -> None:
    position = 0
    while position < size:
        head = _read(stream, position, 7)
        length = _adts_length(head.ljust(7, b"\xff"))
        if not length:
            return  # something else follows, such as a tag
        if len(head) < 7 or position + length > size:
            raise CutOffError(f"its last frame has {length} bytes, {size - position} are there")
        position += length


def _adts_length(head: bytes) -> int:
    """Bytes of the ADTS frame that begins with ``head``; 0 where none begins."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length >= 7 else 0


def _read(stream: BinaryIO, position: int, count: int) -> bytes:
    stream.seek(position)
    return stream.read(count)
