"""Damaged media, seeded: read, or refused in one line; no other error, and no traceback on standard error."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmprefix.errors import InputError
from mmprefix.media.audio import read_samples, sound_seconds
from mmprefix.media.image import picture_size, read_picture
from mmprefix.media.kinds import kind_of
from tiny.media import scene, tone

NUMBERS = (b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0\0\0\x80")


def damaged(data: bytes, draw: random.Random) -> bytes:
    """``data`` with some bytes changed, left out, put in or cut off, most of them in its header."""
    copy = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(max(1, min(len(copy), draw.choice((16, 64, 300, len(copy))))))
        way = draw.random()
        if way < 0.5:
            copy[place : place + 1] = bytes([draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))])
        elif way < 0.65:
            copy[place : place + 4] = draw.choice(NUMBERS)
        elif way < 0.75:
            del copy[place : place + draw.randrange(1, 50)]
        elif way < 0.9:
            copy[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 40)))
        else:
            copy = copy[: draw.randrange(1, len(copy) + 1)] or bytearray(b"x")
    return bytes(copy)


def sounds() -> list[bytes]:
    """A sound in every container, and two chains."""
    files = []
    for container in soundfile.available_formats():
        stream = io.BytesIO()
        if container not in ("RAW", "SD2") and soundfile.check_format(container, soundfile.default_subtype(container)):
            soundfile.write(stream, tone(0.3, 8000), 8000, format=container)
            files.append(stream.getvalue())
    chains = [2 * data for data in files if data.startswith((b"OggS", b"\xff"))]
    assert len(chains) == 2
    return files + chains


def pictures() -> list[bytes]:
    """A picture in every format that Pillow writes and we read."""
    files = []
    formats = (
        "PNG",
        "JPEG",
        "WEBP",
        "GIF",
        "BMP",
        "TIFF",
        "AVIF",
        "JPEG2000",
        "PPM",
        "TGA",
        "ICO",
        "PCX",
        "DDS",
        "QOI",
    )
    for container in (*formats, "QOI"):
        stream = io.BytesIO()
        scene().save(stream, container)
        files.append(stream.getvalue())
    stream = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.int32).reshape(32, 32) * 1000).save(stream, "TIFF")
    return [*files, stream.getvalue()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "readers"),
    [
        (sounds, (kind_of, sound_seconds, read_samples, lambda data: read_samples(data, 0.1, 0.2))),
        (pictures, (kind_of, picture_size, read_picture)),
    ],
    ids=["sounds", "pictures"],
)
def test_damaged_media_end_in_one_line(
    make: Callable[[], list[bytes]], readers: tuple[Callable[[bytes], object], ...], capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(13)
    files = make()
    read, refusals = 0, []
    for _ in range(400):
        data = damaged(draw.choice(files), draw)
        for reader in readers:
            try:
                reader(data)
                read += 1
            except InputError as error:
                refusals.append(str(error))
    assert min(read, len(refusals)) > 200
    assert [text for text in refusals if "\n" in text] == []
    assert "Traceback" not in capfd.readouterr().err
