"""Ogg: streams chained one behind the other, and the end mark that a file which was cut off lacks (RFC 3533).

libsndfile reads the first stream of a chain and says nothing of the others, nor of a last page that is missing.
"""

from __future__ import annotations

from typing import BinaryIO

from mmprefix.media.sound_headers import MAX_STREAMS, CutOffError
from mmprefix.media.source import stream_view

_FIRST_PAGE, _LAST_PAGE = 0x02, 0x04  # flags of a page: the first and the last of its stream
_SEARCH = 1 << 16  # bytes searched at a time for the next page, where others lie between


def ogg_streams(stream: BinaryIO, size: int) -> list[BinaryIO]:
    """The streams chained in ``stream`` of ``size`` bytes; streams side by side (sound and video) are one.

    Raises CutOffError where a page is not whole, or a stream has no end mark.
    """
    starts: list[int] = []
    ended, first = True, False
    position = 0
    while (page := _next_page(stream, position, size)) is not None:
        start, position, flags = page
        if position > size:
            raise CutOffError("its last page is not whole")
        if not starts and not flags & _FIRST_PAGE:
            raise CutOffError("its first page is missing")
        if flags & _FIRST_PAGE and not first:  # the first pages of streams side by side come together
            _require_end(ended, len(starts))
            starts.append(start)
            if len(starts) > MAX_STREAMS:
                break
        first, ended = bool(flags & _FIRST_PAGE), bool(flags & _LAST_PAGE)
    if len(starts) <= MAX_STREAMS:
        _require_end(ended, len(starts))
    if len(starts) == 1:
        return [stream]
    return [stream_view(stream, start, end) for start, end in zip(starts, [*starts[1:], size], strict=True)]


def _require_end(ended: bool, count: int) -> None:
    if not ended:
        raise CutOffError(f"stream {count} of it has no end mark" if count > 1 else "its last page has no end mark")


def _next_page(stream: BinaryIO, position: int, size: int) -> tuple[int, int, int] | None:
    """First byte, last byte + 1 (beyond ``size``: not whole) and flags of the page at ``position`` or the next one."""
    while True:
        stream.seek(position)
        head = stream.read(27)
        if head[:4] == b"OggS":
            break
        ahead = (head + stream.read(_SEARCH)).find(b"OggS")
        if ahead < 0 and position + _SEARCH >= size:
            return None
        position += ahead if ahead >= 0 else _SEARCH
    if len(head) < 27:
        return position, size + 1, 0
    lacing = stream.read(head[26])
    if len(lacing) < head[26]:
        return position, size + 1, 0
    return position, position + 27 + len(lacing) + sum(lacing), head[5]
