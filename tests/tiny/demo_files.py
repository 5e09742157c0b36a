"""Files that a page must refuse, small on disk and large by their headers."""

from __future__ import annotations

import struct
import wave
import zipfile
import zlib
from itertools import islice
from pathlib import Path

from mmprefix import world


def huge_picture(path: Path, side: int = 30_000) -> Path:
    """A valid PNG of side x side black pixels of one bit, a few hundred kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def long_sound(path: Path, seconds: int = 600) -> Path:
    """A WAV of silence, of 8000 samples a second with 8 bits."""
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(8000)
        sound.writeframes(bytes([128]) * 8000 * seconds)
    return path


def large_file(path: Path, megabytes: int = 200) -> Path:
    """A sparse file."""
    with path.open("wb") as stream:
        stream.truncate(megabytes << 20)
    return path


def text_file(path: Path) -> Path:
    """A text under any name."""
    path.write_text("no picture at all\n" * 10)
    return path


def pictures(folder: Path, count: int) -> list[tuple[Path, list[str]]]:
    """Pictures of held-out scenes of the embedded world, and the captions that are true of each."""
    folder.mkdir(exist_ok=True)
    made = []
    for number, scene in enumerate(islice(world.sample("image", 77, new=True), count)):
        assert isinstance(scene, world.Picture)
        path = folder / f"scene-{number:03d}.png"
        world.draw(scene).save(path)
        made.append((path, world.captions(scene)))
    return made


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    """A zip with these members, by whatever names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path
