"""Writing that is whole or not at all, and one plain line where the disk does not take it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mmprefix.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name beside ``path`` by ``write``, then renames it to ``path`` in one step.

    Raises InputError when the disk refuses; a file that was there before is then still there, and nothing else.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors_as_input_errors(path):
        try:
            write(fresh)
            with fresh.open("rb") as stream:
                os.fsync(stream.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def write_directory_atomically(directory: Path, write: Callable[[Path], object]) -> None:
    """Fills a directory under a temporary name beside ``directory`` by ``write``, then puts it in its place, whole.

    Raises InputError when the disk refuses; a directory that was there before is then still there, and nothing else.
    """
    with disk_errors_as_input_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            write(fresh)
            fresh.chmod(0o755)  # temporary directories are private
            _replace_directory(directory, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _replace_directory(directory: Path, fresh: Path) -> None:
    if not directory.exists():
        fresh.rename(directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
    directory.rename(old / directory.name)
    try:
        fresh.rename(directory)
    except OSError:
        (old / directory.name).rename(directory)
        raise
    finally:
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
