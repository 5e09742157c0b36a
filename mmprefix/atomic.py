"""Writing that is whole or not at all, and one plain line where the disk does not take it.

Temporary names begin with a dot, stand beside the target, cannot be guessed, and tell which process writes: what a
killed process left is removed by the next writer of the same target on this machine. The umask holds.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mmprefix.errors import InputError

_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name beside ``path`` by ``write``, then rename it to ``path`` in one step.

    Raises InputError when the disk refuses; a file that was there before is then still there, and nothing else.
    """
    with disk_errors_as_input_errors(path):
        _remove_left_over(path)
        fresh = _temporary(path)
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # never a link that lies there
        mode = fresh.stat().st_mode
        try:
            write(fresh)
            fresh.chmod(mode)  # some libraries replace the file by a private one
            with fresh.open("rb") as stream:
                os.fsync(stream.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def write_directory_atomically(directory: Path, write: Callable[[Path], object]) -> None:
    """Fill a directory under a temporary name beside ``directory`` by ``write``, then put it in its place, whole.

    Raises InputError when the disk refuses; a directory that was there before is then still there, and nothing else.
    On Linux the two change places in one step; elsewhere there is a moment without either.
    """
    with disk_errors_as_input_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(directory)
        fresh = _temporary(directory)
        fresh.mkdir()
        try:
            write(fresh)
            if not directory.exists():
                fresh.rename(directory)
            elif not _exchange(fresh, directory):
                _replace_in_two_steps(directory, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def require_writable_folder(folder: Path, option: str) -> None:
    """Make ``folder`` where it is missing; InputError that names ``option`` where no file can be written in it."""
    probe = _temporary(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        probe.unlink()
    except OSError as error:
        raise InputError(f"{option} {folder}: cannot be written ({error.strerror}); give another folder") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_stem(path)}{os.getpid()}.{secrets.token_hex(8)}.tmp")


def _stem(path: Path) -> str:
    name = path.name.encode()[:120].decode(errors="ignore")  # a name has at most 255 bytes
    return f".{name}.{socket.gethostname()[:40]}."


def _remove_left_over(path: Path) -> None:
    """Remove what killed processes of this machine left of earlier writes of ``path``."""
    stem = _stem(path)
    for entry in os.scandir(path.parent):
        owner = entry.name.removeprefix(stem).split(".")[0]
        if not entry.name.startswith(stem) or not entry.name.endswith(".tmp") or not owner.isdecimal():
            continue
        if not _is_alive(int(owner)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def remove_left_overs(folder: Path) -> None:
    """Remove what killed processes of this machine left of writes of any file in ``folder``."""
    pattern = re.compile(rf"\.(.+)\.{re.escape(socket.gethostname()[:40])}\.\d+\.[0-9a-f]+\.tmp")
    for entry in os.scandir(folder):
        if match := pattern.fullmatch(entry.name):
            _remove_left_over(folder / match[1])


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # nothing that tells without doing harm
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change places in one step; False where the system or the disk has no such step."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _replace_in_two_steps(directory: Path, fresh: Path) -> None:
    old = _temporary(directory)
    directory.rename(old)
    try:
        fresh.rename(directory)
    except OSError:
        old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors_as_input_errors(path: Path) -> Generator[None, None, None]:
    """Turns what a full or read-only disk raises while ``path`` is written into an InputError of one line."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError | SafetensorError):
            cause = cause.__context__  # torch complains of its broken archive while it handles the disk's complaint
        if cause is None:
            raise
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        raise InputError(f"{path}: could not be written ({reason}); what stood there before is untouched") from error
