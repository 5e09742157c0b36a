"""Files that are there whole or not at all, and one plain line where the disk does not take them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mmprefix.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` makes a file under a temporary name beside ``path``, which then takes its place in one step.

    Raises InputError when the disk refuses; what stood at ``path`` is then still there, and nothing else.
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


@contextmanager
def disk_errors_as_input_errors(path: Path) -> Iterator[None]:
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
