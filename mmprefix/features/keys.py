"""Keys of the feature store: the hash of an input's content, and the span of it that is read.

A file is hashed once; later its size and times tell that it is unchanged, as in git.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Collection, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from mmprefix.atomic import disk_errors_as_input_errors
from mmprefix.errors import InputError
from mmprefix.features.shard import KEY
from mmprefix.media.source import FrameSequence, Source, Texts, open_source, split_member
from mmprefix.media.video import files_of

_TABLE = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, changed INT, touched INT, sha256 TEXT)"


def feature_key(content: str, start: float = 0.0, end: float | None = None) -> bytes:
    """Key of the span from ``start`` to ``end`` seconds of an input whose content has this hash."""
    return hashlib.sha256(f"{content} {start!r} {end!r}".encode()).digest()[:KEY]


def content_hashes(sources: Iterable[Source], memory: Path) -> dict[Source, str]:
    """SHA-256 (hex) of each file, archive member, text, or video of several pictures.

    ``memory`` is a file that keeps the hashes of files. The hash of several pictures is that of their hashes in order.
    Raises InputError for a file that cannot be read.
    """
    several = list(sources)
    texts = {text: hashlib.sha256(text.joined.encode()).hexdigest() for text in several if isinstance(text, Texts)}
    files = {source: files_of(source) for source in several if not isinstance(source, Texts)}
    hashes = _file_hashes({file for names in files.values() for file in names}, memory)
    joint = {source: _joint_hash(source, [hashes[file] for file in names]) for source, names in files.items()}
    return {**texts, **joint}


def _joint_hash(source: Source, hashes: list[str]) -> str:
    if isinstance(source, str | Path) and not Path(source).is_dir():
        return hashes[0]
    rate = source.rate if isinstance(source, FrameSequence) else 1.0
    return hashlib.sha256("\n".join([f"{rate!r} pictures a second", *hashes]).encode()).hexdigest()


def _file_hashes(files: Collection[str], memory: Path) -> dict[str, str]:
    names = {name: os.path.abspath(name) for name in files}
    states = {name: _state(name) for name in names.values()}
    with disk_errors_as_input_errors(memory):
        memory.parent.mkdir(parents=True, exist_ok=True)
    with _database_errors_as_input_errors(memory), closing(sqlite3.connect(memory, timeout=60)) as base:
        base.execute(_TABLE)
        known = {
            str(row[0]): str(row[4])
            for row in base.execute("SELECT * FROM files")
            if states.get(row[0]) == (row[1], row[2], row[3])
        }
        new = [name for name in states if name not in known]
        with ThreadPoolExecutor(8) as pool:
            known |= dict(zip(new, pool.map(_hash, new), strict=True))
        with base:
            base.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                [(name, *states[name], known[name]) for name in new],
            )
    return {name: known[full] for name, full in names.items()}


@contextmanager
def _database_errors_as_input_errors(file: Path) -> Generator[None, None, None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{file}: cannot be used ({error}); it only remembers hashes of files: make room for it, or remove it"
        ) from error


def _state(name: str) -> tuple[int, int, int]:
    status = split_member(name)[0].stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _hash(name: str) -> str:
    digest = hashlib.sha256()
    with open_source(name, empty=True) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
