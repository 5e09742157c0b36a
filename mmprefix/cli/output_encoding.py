"""Standard output and error that never fail on a character: what their encoding lacks is escaped as in JSON.

A file name or a caption may hold any character. Output that is sent to a file may have an encoding of 256 characters
(Windows), and UTF-8 cannot hold file names that are no text (PEP 383).
"""

from __future__ import annotations

import codecs
import io
import sys

_NAME = "mmprefix.escape"


def escape_what_cannot_be_written() -> None:
    r"""Make ``sys.stdout`` and ``sys.stderr`` write ``\uXXXX`` for characters outside their encoding."""
    codecs.register_error(_NAME, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_NAME)


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""The characters as ``\uXXXX``, two of them beyond U+FFFF: JSON lines stay what they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end
