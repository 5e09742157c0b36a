"""Detection of WAV and Ogg files that were cut off: libsndfile reads them without an error.

A WAV header announces its length (RIFF: https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/WAVE.html); the last
page of an Ogg stream carries an end mark (RFC 3533, section 6). FLAC and MP3 are caught by counting decoded frames.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

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
