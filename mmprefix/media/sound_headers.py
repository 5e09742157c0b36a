"""Header of a sound file: where its samples are, how many bytes are announced, and how many are there.

libsndfile reads what is there and says nothing of the rest. A length that a program left in the header because its
output was a pipe is repaired; a length that the file does not reach is a fault. PAF, PVF and IRCAM have no length in
their headers, nor has an XI that libsndfile wrote: a part of one is a whole file. FLAC has one that tells only when the
sound is decoded. Layouts:
WAV https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/WAVE.html, RF64 and BW64 EBU Tech 3306 and ITU-R BS.2088,
AIFF https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/AIFF/AIFF.html, CAF Apple's Core Audio Format Specification,
AU https://en.wikipedia.org/wiki/Au_file_format, NIST https://www.isip.piconepress.com/projects/speech/software/,
VOC, AVR, WVE and SDS http://fileformats.archiveteam.org/wiki/Category:Audio_and_Music, MAT MathWorks' MAT-File Format,
MPC2K and XI libsndfile's mpc2k.c and xi.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mmprefix.media.source import stream_view

MAX_STREAMS = 1000  # sounds one behind the other in a file
_MAX_CHUNKS = 10_000  # before the sound; a file of zeros would be millions of empty ones


class CutOffError(ValueError):
    """Reason why a sound is cut off; it belongs behind the file's name."""


class _Chunks(NamedTuple):
    """Layout of chunks (identifier, length, body): bodies begin at multiples of ``align``."""

    first: int
    order: str = "<I"
    sound: bytes = b"data"
    align: int = 2
    identifier: int = 4
    inclusive: bool = False  # the length counts identifier and length as well


class _Chunk(NamedTuple):
    identifier: bytes
    field: int  # position of the length
    start: int  # position of the body
    length: int


# Lengths that programs write where they cannot go back: SoX 0x7FFFF000 (AIFF 0x7F000000), arecord 0x80000000 and
# FFmpeg 0xFFFFFFFF. Some subtract the header, or round down to whole frames.
_PLACEHOLDERS = (0x7F000000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_SLACK = 128
_MAT4 = {struct.pack(f"{order}3I", kind, 1, 1): order for order, kind in (("<", 0), (">", 1000))}  # a rate comes first
_MAT4_WIDTHS = (8, 4, 4, 2, 2, 1)  # bytes of a number, by the tens of its type
_LONGEST = 1 << 62  # bytes; from here on a length of 64 bits is a placeholder


def whole_sound(stream: BinaryIO, size: int) -> BinaryIO:
    """The sound file ``stream`` of ``size`` bytes, its header's length repaired where a pipe left it open.

    Files without chunks and of other formats are returned as they are. Raises CutOffError.
    """
    stream.seek(0)
    head = stream.read(16)
    layout = _layout(head)
    if layout is None:
        _require_simple(stream, head, size)
        return stream
    wide = _wide_length(stream, size) if head[:4] in (b"RF64", b"BW64") else None
    for chunk in _walk(stream, size, layout):
        if chunk.identifier.startswith(layout.sound):
            return _repaired(stream, size, layout, chunk=chunk, wide=wide)
    raise CutOffError("its header is there, its sound is not")


def _layout(head: bytes) -> _Chunks | None:
    kind, form = head[:4], head[8:12]
    if kind in (b"RIFF", b"RF64", b"BW64") and form == b"WAVE":
        return _Chunks(12)
    if kind == b"RIFX" and form == b"WAVE":
        return _Chunks(12, ">I")
    if kind == b"FORM" and form in (b"AIFF", b"AIFC", b"8SVX", b"16SV"):
        return _Chunks(12, ">I", b"SSND" if form[:3] == b"AIF" else b"BODY")
    if kind == b"caff":
        return _Chunks(8, ">q", align=1)
    if head == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00":  # Wave64: identifiers of 16 bytes
        return _Chunks(40, "<q", align=8, identifier=16, inclusive=True)
    return None


def _walk(stream: BinaryIO, size: int, layout: _Chunks) -> Iterator[_Chunk]:
    """Chunks in order; a length below zero ends the walk behind its chunk."""
    position = layout.first
    head = layout.identifier + struct.calcsize(layout.order)
    for _ in range(_MAX_CHUNKS):
        if position + head > size:
            return
        stream.seek(position)
        identifier = stream.read(layout.identifier)
        (length,) = struct.unpack(layout.order, stream.read(head - layout.identifier))
        length -= head if layout.inclusive else 0
        yield _Chunk(identifier, position + layout.identifier, position + head, length)
        if length < 0:
            return
        position += head + length
        position += -position % layout.align


def _wide_length(stream: BinaryIO, size: int) -> _Chunk | None:
    """Length of the sound in 64 bits, and its place, from the chunk ``ds64`` of RF64 and BW64."""
    chunk = next(_walk(stream, size, _Chunks(12)), None)
    if chunk is None or chunk.identifier != b"ds64" or chunk.start + 16 > size:
        return None
    stream.seek(chunk.start + 8)
    (length,) = struct.unpack("<Q", stream.read(8))
    return _Chunk(chunk.identifier, chunk.start + 8, chunk.start + 16, length)


def _repaired(stream: BinaryIO, size: int, layout: _Chunks, *, chunk: _Chunk, wide: _Chunk | None) -> BinaryIO:
    rest = size - chunk.start
    length, field, order = chunk.length, chunk.field, layout.order
    if wide is not None and length == 0xFFFFFFFF:
        length, field, order = wide.length, wide.field, "<Q"
    patches = {0: b"RF64"} if _starts_with(stream, b"BW64") else {}  # libsndfile knows the older name only
    if _is_placeholder(length, order) and not (
        length <= rest and _is_followed(stream, size, layout, chunk.start + length)
    ):
        whole = rest + (chunk.start - chunk.field + layout.identifier if layout.inclusive else 0)
        patches[field] = struct.pack(order, min(whole, 0xFFFFFFFF) if order[1] == "I" else whole)
    elif length > rest:
        raise CutOffError(f"its header announces {length} bytes of sound, {rest} are there")
    return stream_view(stream, 0, size, patches=patches) if patches else stream


def _is_placeholder(length: int, order: str) -> bool:
    if length <= 0 or length >= _LONGEST:
        return True
    return order[1] == "I" and any(known - _SLACK <= length <= known + 8 for known in _PLACEHOLDERS)


def _is_followed(stream: BinaryIO, size: int, layout: _Chunks, end: int) -> bool:
    """True if the file ends at ``end``, where the sound ends, or another chunk begins there: the length holds."""
    end += -end % layout.align
    if end >= size:
        return True
    following = next(_walk(stream, size, layout._replace(first=end)), None)
    if following is None:
        return False
    name = following.identifier[:4]
    return all(32 <= byte < 127 for byte in name) and 0 <= following.length <= size - following.start


def _starts_with(stream: BinaryIO, word: bytes) -> bool:
    stream.seek(0)
    return stream.read(len(word)) == word


def _require_simple(stream: BinaryIO, head: bytes, size: int) -> None:
    """Raise CutOffError for a cut-off file of a container without chunks, as far as its header tells."""
    stream.seek(0)
    fields = stream.read(1024)
    if head[:8] == b"NIST_1A\n":
        length = _nist_length(fields)
    elif head[:8] == b"Creative":
        length = _voc_end(stream, fields)
    elif head[:8] == b"MATLAB 5":
        layout = _Chunks(128, "<I" if fields[126:128] == b"IM" else ">I", align=8)
        ends = (chunk.start + chunk.length for chunk in _walk(stream, size, layout))
        length = max(ends, default=8) - 8  # libsndfile writes 8 too many
    elif head[:12] in _MAT4:
        length = _mat4_end(stream, _MAT4[head[:12]], size)
    else:
        length = _fixed_length(fields)
    if length is not None and length > size:
        raise CutOffError(f"its header announces a file of {length} bytes, {size} are there")


def _fixed_length(fields: bytes) -> int | None:
    """Bytes of the whole file by fields at fixed places; None for other files, and where a length is left open."""

    def field(form: str, place: int) -> int:
        return struct.unpack_from(form, fields.ljust(1024, b"\0"), place)[0]

    length = None
    if fields[:4] in (b".snd", b"dns."):
        start, length = struct.unpack(">II" if fields[:4] == b".snd" else "<II", fields[4:12].ljust(8, b"\xff"))
        length = None if _is_placeholder(length, ">I") else start + length
    elif fields[:4] == b"2BIT":  # AVR: frames, one or two channels, bits
        length = 128 + field(">I", 26) * (2 if field(">H", 12) else 1) * field(">H", 14) // 8
    elif fields[:16] == b"ALawSoundFile**\0":  # WVE
        length = 32 + field(">I", 18)
    elif fields[:2] == b"\x01\x04":  # MPC2K: frames of 16 bits, one or two channels
        length = 42 + field("<I", 30) * (4 if field("B", 21) else 2)
    elif fields[:2] == b"\xf0\x7e" and field("B", 3) == 1:  # SDS: packets of 127 bytes, 120 of them numbers
        frames = field("B", 10) | field("B", 11) << 7 | field("B", 12) << 14
        length = 21 + 127 * -(-frames // (120 // max(2, -(-field("B", 6) // 7))))
    elif fields[:21] == b"Extended Instrument: ":  # XI: sounds, each with its bytes in a header of 40
        length = 298 + sum(40 + field("<I", 298 + 40 * number) for number in range(min(16, field("<H", 296))))
    return length


def _voc_end(stream: BinaryIO, fields: bytes) -> int | None:
    """Position behind the last block of a VOC file; None where a block leaves its length open."""
    (position,) = struct.unpack_from("<H", fields.ljust(22, b"\0"), 20)
    for _ in range(_MAX_CHUNKS):
        stream.seek(position)
        block = stream.read(4)
        if len(block) < 4 or not block[0]:
            break
        length = int.from_bytes(block[1:], "little")
        if not length:
            return None
        position += 4 + length
    return position


def _mat4_end(stream: BinaryIO, order: str, size: int) -> int | None:
    """Position behind the last matrix of a MAT4 file; None where one is of a type that is not known."""
    position = 0
    for _ in range(_MAX_CHUNKS):
        stream.seek(position)
        if len(head := stream.read(20)) < 20:
            break
        kind, rows, columns, imaginary, name = struct.unpack(f"{order}5I", head)
        if kind // 10 % 10 >= len(_MAT4_WIDTHS):
            return None
        position += 20 + name + rows * columns * _MAT4_WIDTHS[kind // 10 % 10] * (2 if imaginary else 1)
        if position >= size:
            break
    return position


def _nist_length(header: bytes) -> int | None:
    """Bytes of the whole file, from the fields of its header; None where one is missing."""
    fields = {name: int(value) for name, value in re.findall(rb"^(\w+) -\w+ (\d+)\s*$", header, re.MULTILINE)}
    size = re.match(rb"NIST_1A\n\s*(\d+)", header)
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    if size is None or not all(name in fields for name in names):
        return None
    count, channels, width = (fields[name] for name in names)
    return int(size[1]) + count * channels * width
