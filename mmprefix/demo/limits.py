"""Limits of the page: size, pixels and seconds by the header, before anything is decoded; calls a minute; time.

A page is used by strangers: each of these says in one sentence what was too much.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.media.kinds import KINDS, kind_of

_ADVICE = re.compile(r"; raise it by MMPREFIX_MAX_\w+")  # is for whoever starts the page, not for its visitors
_MOST_VISITORS = 10_000  # whose calls are counted
MB = 1 << 20  # bytes, as Gradio counts them
READ = ("image", "audio", "video")  # kinds of files that the page takes


@dataclass(frozen=True)
class DemoLimits:
    """Most that a visitor may ask for.

    Args:
        max_mb: megabytes of a file, and of a file in a zip.
        max_seconds: of a sound or a video.
        max_pixels: of a picture.
        max_files: of a batch.
        queue: calls that wait for their turn.
        rate: calls a minute from one address.
        timeout: seconds of a call; a batch has ten times as many.

    Raises InputError for a limit that is not positive.
    """

    max_mb: float = 50.0
    max_seconds: float = 120.0
    max_pixels: float = 50e6
    max_files: int = 500
    queue: int = 32
    rate: int = 60
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"--{name.replace('_', '-')} {value}: give a number above 0")

    @property
    def max_bytes(self) -> int:
        """Bytes of ``max_mb``."""
        return int(self.max_mb * MB)

    @property
    def of_readers(self) -> dict[str, float]:
        """Limits for every reader of the process, for files whose headers say too little."""
        seconds = self.max_seconds + 1  # decoders round up to whole frames
        return {"pixels": self.max_pixels, "seconds": seconds, "bytes": self.max_bytes}


def check_file(path: str | Path, name: str, limits: DemoLimits) -> str:
    """Kind of the file at ``path`` (image, audio, video), which its visitor knows as ``name``; only headers are read.

    Raises InputError for a file of another kind, one that cannot be read, and one beyond the ``limits``.
    """
    try:
        size = os.path.getsize(path)
        require_size(size, name, limits)
        if not size:
            raise InputError(f"{name}: the file is empty")
        kind = kind_of(path)
        if kind not in READ:
            raise InputError(f"{name}: neither a picture nor a sound that can be read")
        info = KINDS[kind].inspect(path, 0.0, None, False)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    except InputError as error:
        raise InputError(sentence(error, path, name)) from None
    if info.fault:
        raise InputError(sentence(InputError(info.fault), path, name))
    _require_measures(info.size, info.seconds, name, limits)
    return kind


def require_size(size: float, name: str, limits: DemoLimits) -> None:
    """Raise InputError for a file of more bytes than this page takes."""
    if size > limits.max_bytes:
        raise InputError(f"{name}: {size / MB:,.0f} MB; this page takes files of at most {limits.max_mb:,g} MB")


def _require_measures(size: tuple[int, int] | None, seconds: float | None, name: str, limits: DemoLimits) -> None:
    if size is not None and size[0] * size[1] > limits.max_pixels:
        most = f"this page takes pictures of at most {limits.max_pixels / 1e6:,g} million"
        raise InputError(f"{name}: {size[0]:,} x {size[1]:,} pixels; {most}")
    if seconds is not None and seconds > limits.max_seconds:
        most = f"this page takes sounds of at most {limits.max_seconds:,g} s"
        raise InputError(f"{name}: {seconds:,.0f} s long; {most}")


def sentence(error: BaseException, path: str | Path | None = None, name: str = "") -> str:
    """Message of ``error`` for a visitor: the file by its ``name`` instead of its ``path``, no advice for the shell."""
    text = _ADVICE.sub("", str(error))
    if path is not None:
        text = text.replace(str(path), name).replace(str(Path(path).parent), "")
    return text


@dataclass(frozen=True)
class UploadRoom:
    """Bytes that all files of visitors may take together in ``folder``, where they lie for an hour."""

    folder: Path
    most: int

    @property
    def is_full(self) -> bool:
        """True once the files take as much, or more."""
        files = (Path(place, name) for place, _, names in os.walk(self.folder) for name in names)
        return sum(file.stat().st_size for file in files if file.exists()) >= self.most


class RateLimit:
    """Calls a minute of each visitor, known by address; thread-safe."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._calls: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, visitor: str) -> None:
        """Count a call of ``visitor``. Raises InputError where it is one too many in this minute."""
        now = time.monotonic()
        with self._lock:
            calls = self._calls.setdefault(visitor, deque())
            self._calls.move_to_end(visitor)
            while calls and now - calls[0] > 60:
                calls.popleft()
            if len(calls) >= self.per_minute:
                wait = 60 - (now - calls[0])
                raise InputError(f"{self.per_minute} calls a minute are the limit of this page; wait {wait:.0f} s")
            calls.append(now)
            if len(self._calls) > _MOST_VISITORS:
                self._calls.popitem(last=False)


class Deadline:
    """Time limit of one call: ``check`` raises InputError once ``seconds`` are over."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._start = seconds, time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds since the call began."""
        return time.perf_counter() - self._start

    @property
    def is_over(self) -> bool:
        """True once the time is over."""
        return self.spent > self.seconds

    def check(self) -> None:
        """Raise InputError once the time is over."""
        if self.is_over:
            raise InputError(f"stopped after {self.seconds:,g} s, the time limit of this page; ask for less at once")
