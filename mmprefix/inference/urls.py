"""Inputs that are addresses: downloaded within limits of bytes and time."""

from __future__ import annotations

import time
import urllib.request
from http.client import HTTPException
from typing import Any, cast
from urllib.error import URLError

from mmprefix.errors import InputError
from mmprefix.inference.inputs import urls_in
from mmprefix.media.source import is_url
from mmprefix.trust.limits import limit, require_below

SECONDS = 60.0  # of a download, all included
_CHUNK = 1 << 16
_PLAIN = (urllib.request.HTTPHandler, urllib.request.HTTPSHandler, urllib.request.ProxyHandler)


def downloaded(value: Any) -> Any:
    """One input with the bytes of its addresses in their place."""
    if isinstance(value, dict):
        return {name: downloaded(item) for name, item in cast("dict[str, object]", value).items()}
    return download(value) if is_url(value) else value


def with_url(error: InputError, value: object) -> InputError:
    """``error`` with the address of a downloaded input, whose bytes have no name, in its message."""
    urls = urls_in(value)
    return InputError(str(error).replace("the given bytes", urls[0])) if urls else error


def download(url: str, seconds: float = SECONDS, opener: urllib.request.OpenerDirector | None = None) -> bytes:
    """Bytes at ``url``. Raises InputError that names it for what a server refuses, too many bytes, and too long a time.

    The limit of bytes is that of ``mmprefix.trust.limits``; ``seconds`` count from the first word to the last byte.
    ``opener``: how the address is opened; by default http and https, with the environment's proxies.
    """
    end = time.monotonic() + seconds
    try:
        with (opener or urllib.request.build_opener(*_PLAIN)).open(url, timeout=seconds) as answer:
            announced = answer.headers.get("Content-Length", "")
            require_below("bytes", float(announced) if announced.isdecimal() else 0.0, url)
            return _read(answer, url, end, seconds)
    except InputError:
        raise
    except TimeoutError as error:
        raise _too_slow(url, seconds) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            raise _too_slow(url, seconds) from error
        raise InputError(f"{url}: could not be downloaded ({reason})") from error


def _read(answer: Any, url: str, end: float, seconds: float) -> bytes:
    parts, size, most = list[bytes](), 0, limit("bytes")
    while chunk := answer.read1(_CHUNK):
        parts.append(chunk)
        size += len(chunk)
        if size > most:
            require_below("bytes", size, url)
        if time.monotonic() > end:
            raise _too_slow(url, seconds)
    return b"".join(parts)


def _too_slow(url: str, seconds: float) -> InputError:
    return InputError(f"{url}: took longer than {seconds:.0f} s; download it first, and give the file")
