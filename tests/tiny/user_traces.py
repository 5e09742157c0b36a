"""Random users for stores, and a search of a store's files for any fragment of their ids and texts."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PIECE = 12  # bytes; as many of random texts occur by chance in no file of some megabytes
ALPHABETS = ("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", "".join(map(chr, range(0x4E00, 0x9000))))


def random_text(draw: random.Random, length: int) -> str:
    """Text of ``length`` random characters, of one byte or of three each."""
    return "".join(draw.choices(draw.choice(ALPHABETS), k=length))


def random_history(draw: random.Random, longest: int = 5) -> list[str]:
    """None to ``longest`` texts: words, sentences, and texts that span pages of 4096 bytes."""
    return [random_text(draw, draw.choice((6, 40, 300, 1400, 9000))) for _ in range(draw.randrange(longest + 1))]


def bytes_on_disk(path: Path) -> bytes:
    """All bytes of the store at ``path``, its log, the log's index and a rollback journal."""
    files = [path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-journal")]
    return b"\0".join(file.read_bytes() for file in files if file.exists())


def traces(path: Path, texts: Iterable[str | bytes]) -> list[bytes]:
    """Fragments of ``texts`` in the files of the store at ``path``."""
    return fragments(bytes_on_disk(path), texts)


def fragments(data: bytes, texts: Iterable[str | bytes]) -> list[bytes]:
    """Fragments of ``texts`` in ``data``: any that is as long as a text, or as ``PIECE`` + 3 bytes of it."""
    pieces: dict[int, set[bytes]] = {}
    for text in texts:
        whole = text.encode() if isinstance(text, str) else text
        size = min(PIECE, len(whole))
        pieces.setdefault(size, set()).update(whole[at : at + size] for at in range(0, len(whole) - size + 1, 4))
    places = ((size, some, _starts(data, size, some)) for size, some in pieces.items())
    return [data[at : at + size] for size, some, starts in places for at in starts if data[at : at + size] in some]


def _starts(data: bytes, size: int, pieces: set[bytes]) -> list[int]:
    """Offsets in ``data`` of the first eight bytes of any of the ``pieces``, or of all of a shorter one."""
    head, count = min(size, 8), len(data) - size + 1
    numbers = np.frombuffer(data, np.uint8)
    keys = np.zeros(max(count, 0), np.uint64)
    for place in range(head):
        keys = keys << np.uint64(8) | numbers[place : place + len(keys)]
    wanted = np.array([int.from_bytes(piece[:head], "big") for piece in pieces], np.uint64)
    return np.flatnonzero(np.isin(keys, wanted)).tolist()
