"""MP3: streams one behind the other, each with a header frame (Xing, Info) that announces its frames and bytes.

libsndfile reads as many frames as the first header frame announces, or as the first bit rate lets it guess, and
libmpg123 inside it writes to standard error where the bytes are more or fewer. Cut into its streams, each with a true
header frame, a file is read to its end, and in silence. Frames: http://www.mp3-tech.org/programmer/frame_header.html;
header frame: http://gabriel.mp3-tech.org/mp3infotag.html.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

from mmprefix.media.sound_headers import MAX_STREAMS, CutOffError
from mmprefix.media.source import stream_view

_MPEG1 = 3  # of the two bits that tell the version; 2 is MPEG 2, 0 is MPEG 2.5
_LAYER3 = 1
_BITRATES = {  # kbit/s of Layer III by the four bits of the header
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)  # Hz of MPEG 1; half of it in MPEG 2, a quarter in MPEG 2.5
_DECODER_DELAY = 529  # samples
_HEADER = 52  # bytes of Info with LAME's extension, without table of contents
_SEARCH = 1 << 16  # bytes in which the next frame is searched where other bytes lie between
_MAX_GAPS = 1000  # places where other bytes lie between
_SHORT = 0.99  # of the announced bytes: some encoders do not count exactly, and decoded frames are counted again


class _Frame(NamedTuple):
    size: int  # bytes
    side: int  # bytes of header and side information, behind which Xing stands
    kind: tuple[int, int]  # version and rate, which a stream keeps


def is_mp3(head: bytes) -> bool:
    """True for a file that begins with an ID3 tag or a frame of Layer III."""
    return head[:3] == b"ID3" or _frame(head[:4]) is not None


def mp3_streams(stream: BinaryIO, size: int) -> list[BinaryIO]:
    """The streams in ``stream`` of ``size`` bytes without the tags around them; ``stream`` itself where it has none.

    Raises CutOffError where fewer bytes are there than announced, or the last frame is not whole.
    """
    streams: list[BinaryIO] = []
    position = _after_tags(stream, 0, size)
    while position < size and (first := _frame(_bytes(stream, position, 4))) is not None:
        length = _announced(stream, position, first)
        end = position + (size if length is None else length)
        if length is None:
            count, end = _count(stream, position, size, first.kind)
            head = _header_frame(_bytes(stream, position, 4), count, end - position)
            streams.append(stream_view(stream, position, end, head=head))
        elif size - position < _SHORT * length:
            raise CutOffError(f"its header announces {length} bytes of sound, {size - position} are there")
        else:
            following = _bytes(stream, end, 8)
            known = end > position and (_is_tag(following) or _frame(following[:4]) is not None)
            end = min(end, size) if known else size  # a length that does not hold says nothing
            streams.append(stream_view(stream, position, end))
        position = _after_tags(stream, end, size)
        if len(streams) > MAX_STREAMS:
            break
    return streams or [stream]


def _after_tags(stream: BinaryIO, position: int, size: int) -> int:
    """Position behind the ID3 tags at ``position``."""
    while (head := _bytes(stream, position, 10))[:3] == b"ID3" and len(head) == 10:
        a, b, c, d = head[6:]
        position += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)
    return min(position, size)


def _announced(stream: BinaryIO, position: int, frame: _Frame) -> int | None:
    """Bytes that the header frame at ``position`` announces, 0 where it leaves them out; None for a frame of sound."""
    tag = _bytes(stream, position + frame.side, 16)
    if tag[:4] not in (b"Xing", b"Info") or len(tag) < 16:
        return 0 if _bytes(stream, position + 36, 4) == b"VBRI" else None
    flags, first, second = struct.unpack(">III", tag[4:])
    length = second if flags & 1 else first  # the number of frames stands before it, where it is there
    return length if flags & 2 else 0


def _count(stream: BinaryIO, position: int, size: int, kind: tuple[int, int]) -> tuple[int, int]:
    """Number of frames from ``position`` on, and where they end. Raises CutOffError for a part of a frame."""
    count = gaps = 0
    while position < size:
        frame = _frame(_bytes(stream, position, 4))
        if frame is None or frame.kind != kind:
            head = _bytes(stream, position, 8)
            skipped = None if _is_tag(head) else _next_frame(stream, position, kind)
            gaps += 1
            if skipped is None or gaps > _MAX_GAPS:
                if frame is None and (not _is_tag(head) or not any(head)):
                    _require_no_more(stream, position, size, kind)
                break
            position = skipped
            continue
        if position + frame.size > size:
            raise CutOffError("its last frame is not whole")
        count += 1
        position += frame.size
    return count, position


def _require_no_more(stream: BinaryIO, position: int, size: int, kind: tuple[int, int]) -> None:
    """Raise CutOffError where frames of ``kind`` follow after all, behind a hole such as a download leaves."""
    if any(_next_frame(stream, start, kind) is not None for start in range(position, size, _SEARCH)):
        raise CutOffError(f"there is a hole in it at byte {position}")


def _next_frame(stream: BinaryIO, position: int, kind: tuple[int, int]) -> int | None:
    """Position of the next frame of ``kind`` that another one follows, where it is not far."""
    block = _bytes(stream, position, _SEARCH)
    at = block.find(b"\xff", 1)
    while at >= 0:
        frame = _frame(block[at : at + 4])
        if frame is not None and frame.kind == kind:
            following = _frame(_bytes(stream, position + at + frame.size, 4))
            if following is not None and following.kind == kind:
                return position + at
        at = block.find(b"\xff", at + 1)
    return None


def _header_frame(head: bytes, count: int, length: int) -> bytes:
    """Header frame (Info) for ``count`` frames of ``length`` bytes, the first of which begins with ``head``.

    A silent frame follows it: a decoder drops the delay that the header frame names and its own, which are as long.
    """
    for bitrate in range(1, 15):
        word = bytes([0xFF, head[1] | 1, bitrate << 4 | head[2] & 0x0C, head[3]])  # no checksum, no padding
        frame = _frame(word)
        if frame is not None and frame.size >= frame.side + _HEADER:
            break
    else:
        return b""
    delay = (1152 if frame.kind[0] == _MPEG1 else 576) - _DECODER_DELAY
    gaps = (delay << 12 | _DECODER_DELAY).to_bytes(3, "big")
    tag = struct.pack(">4sIII9s12x", b"Info", 3, count + 1, length + 2 * frame.size, b"Lavc") + gaps
    return (word + bytes(frame.side - 4) + tag).ljust(frame.size, b"\0") + word.ljust(frame.size, b"\0")


def _frame(head: bytes) -> _Frame | None:
    """The frame of Layer III that begins with the four bytes ``head``; None for anything else."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer != _LAYER3 or bitrate in (0, 15) or rate == 3:
        return None
    first = version == _MPEG1
    hertz = _RATES[rate] // {_MPEG1: 1, 2: 2, 0: 4}[version]
    mono = head[3] >> 6 == 3
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[first, mono]
    size = (144 if first else 72) * 1000 * _BITRATES[first][bitrate - 1] // hertz + (head[2] >> 1 & 1)
    return _Frame(size, 4 + side, (version, rate))


def _is_tag(head: bytes) -> bool:
    """True for the end of a file, a tag behind the sound, or padding."""
    return head[:3] in (b"", b"TAG", b"ID3") or head in (b"APETAGEX", b"LYRICSBE", bytes(len(head)))


def _bytes(stream: BinaryIO, position: int, count: int) -> bytes:
    stream.seek(position)
    return stream.read(count)
