"""Files of a batch: uploads and the members of uploaded zips, each checked by its header; a bad one is a row.

A zip is never unpacked by its names: each member is copied, within its limit, to a numbered file of a private folder.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from mmprefix.demo.limits import DemoLimits, check_file, require_size
from mmprefix.errors import InputError

_BLOCK = 1 << 20
_JUNK = ("__MACOSX/", ".DS_Store", "Thumbs.db")  # what systems put into zips by themselves
_TIMES = 10  # the zips of a batch may hold ten times ``max_mb`` in all
_ENTRY = 1024  # bytes of a zip's list for each file, of twice as many files as may be in it: name and what systems add
_END, _END_64, _LOCATOR_64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"  # of APPNOTE, 4.3.14 to 4.3.16


@dataclass(frozen=True)
class BatchFile:
    """One file of a batch by the ``name`` that its visitor knows: where it lies, or its ``fault``."""

    name: str
    path: Path | None = None
    fault: str | None = None


@dataclass
class _Room:
    """Bytes that may still be unpacked, of all zips of a batch together."""

    left: int


def batch_files(uploads: Sequence[str], folder: Path, limits: DemoLimits) -> list[BatchFile]:
    """Files of ``uploads``, those of zips copied into ``folder``. Raises InputError for none or too many."""
    if not uploads:
        raise InputError("no files yet: drop pictures, sounds, or a zip of them")
    files: list[BatchFile] = []
    room = _Room(_TIMES * limits.max_bytes)
    for upload in map(Path, uploads):
        if zipfile.is_zipfile(upload) and upload.suffix.lower() == ".zip":
            files += _members(upload, folder, room, limits)
        else:
            files.append(_checked(upload, shown_name(upload.name), limits))
        _require_count(len(files), limits)
    if not files:
        raise InputError("the zip holds no file")
    return _with_own_names(files)


def _checked(path: Path, name: str, limits: DemoLimits) -> BatchFile:
    try:
        check_file(path, name, limits)
    except InputError as error:
        return BatchFile(name, fault=_without_name(error, name))
    return BatchFile(name, path)


def _without_name(error: InputError, name: str) -> str:
    return str(error).removeprefix(f"{name}: ")


def _members(archive: Path, folder: Path, room: _Room, limits: DemoLimits) -> Iterator[BatchFile]:
    """Members of a zip in its order; a member that cannot be read or is too large is its row's fault."""
    try:
        if _list_size(archive) > 2 * _ENTRY * (limits.max_files + 8):  # which would be held in memory, whole
            raise InputError(
                f"{archive.name}: the zip lists more than the {limits.max_files:,} files that this page takes"
            )
        with zipfile.ZipFile(archive) as handle:
            members = [member for member in handle.infolist() if not member.is_dir() and not _is_junk(member.filename)]
            _require_count(len(members), limits)
            for member in members:
                name = shown_name(member.filename)
                target = _new_file(folder, _suffix(name))
                try:
                    room.left -= _copy(handle, member, target, name=name, most=room.left, limits=limits)
                except InputError as error:
                    target.unlink(missing_ok=True)
                    yield BatchFile(name, fault=_without_name(error, name))
                else:
                    yield _checked(target, name, limits)
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as error:
        raise InputError(f"{archive.name}: the zip cannot be read ({type(error).__name__})") from None


def _list_size(archive: Path) -> int:
    """Bytes of the list of files at a zip's end, by its last record, which is looked for as ``zipfile`` does."""
    with archive.open("rb") as stream:
        start = max(0, stream.seek(0, os.SEEK_END) - (1 << 16) - 22 - 20 - 56)  # comment, and the three records
        stream.seek(start)
        tail = stream.read()
    at = len(tail) - 22 if tail[-22:-18] == _END and tail[-2:] == b"\0\0" else tail.rfind(_END)
    if at >= 76 and tail[at - 20 : at - 16] == _LOCATOR_64 and tail[at - 76 : at - 72] == _END_64:
        return int(struct.unpack_from("<Q", tail, at - 76 + 40)[0])
    return int(struct.unpack_from("<I", tail, at + 12)[0])


def _copy(
    handle: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, *, name: str, most: int, limits: DemoLimits
) -> int:
    """Copy a member, at most its limit whatever its header says; the bytes copied."""
    require_size(member.file_size, name, limits)
    try:
        with handle.open(member) as source, target.open("wb") as sink:
            return _copy_bounded(source, sink, name, most=most, limits=limits)
    except InputError:
        raise
    except Exception as error:  # of zipfile and of each way to compress or encrypt
        raise InputError(f"{name}: cannot be unpacked ({error})") from None


def _copy_bounded(source: IO[bytes], sink: IO[bytes], name: str, *, most: int, limits: DemoLimits) -> int:
    copied = 0
    while block := source.read(_BLOCK):
        copied += len(block)
        require_size(copied, name, limits)
        if copied > most:
            raise InputError(f"{name}: the zips of a batch hold more than {_TIMES * limits.max_mb:,g} MB in all")
        sink.write(block)
    return copied


def shown_name(member: str) -> str:
    """Name of a zip's member without its folders and without characters that are no print."""
    name = PurePosixPath(member.replace("\\", "/")).name
    return "".join(letter for letter in name if letter.isprintable())[:200] or "unnamed"


def _new_file(folder: Path, suffix: str) -> Path:
    handle, path = tempfile.mkstemp(suffix, dir=folder)
    os.close(handle)
    return Path(path)


def _suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if len(suffix) <= 6 and suffix[1:].isalnum() else ""


def _is_junk(name: str) -> bool:
    return name.startswith(_JUNK[0]) or PurePosixPath(name).name in _JUNK or PurePosixPath(name).name.startswith("._")


def _require_count(count: int, limits: DemoLimits) -> None:
    if count > limits.max_files:
        raise InputError(f"{count:,} files; this page takes at most {limits.max_files:,} at once")


def _with_own_names(files: Sequence[BatchFile]) -> list[BatchFile]:
    """Files of which no two have one name: the second ``dog.jpg`` is ``dog (2).jpg``."""
    taken: set[str] = set()
    named: list[BatchFile] = []
    for file in files:
        path, name, number = PurePosixPath(file.name), file.name, 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem} ({number}){path.suffix}"
        taken.add(name.lower())
        named.append(BatchFile(name, file.path, file.fault))
    return named
