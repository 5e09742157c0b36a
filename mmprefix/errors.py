"""Errors that a user can cause and mend, and the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class InputError(ValueError):
    """A wrong file, option or value: something a user can cause and mend. The shell prints one line, exit code 2."""


class NoRowsError(InputError):
    """No row of the data is there for what is asked, such as a test."""


def require_one_of(option: str, value: str, allowed: Collection[str]) -> None:
    """InputError unless ``value`` of ``option`` is one of ``allowed``."""
    if value not in allowed:
        raise InputError(f"{option}: {value!r} is none of {', '.join(allowed)}")


def require_text(option: str, text: str) -> None:
    """InputError for a ``text`` that no tokenizer can read: bytes that are not UTF-8, or half a character."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        part = ascii(text[max(0, error.start - 10) : error.end + 10])
        raise InputError(f"{option}: {part} holds bytes that are not UTF-8, or half a character; write UTF-8") from None


def without_frames(error: InputError) -> InputError:
    """``error``, to be kept as a result: it and its causes let go of the frames they came through.

    A traceback holds the locals of all callers: inputs, decoded files, a batch's tensors.
    """
    _clear_tracebacks(error)
    return error


def _clear_tracebacks(error: BaseException) -> None:
    error.__traceback__ = None
    for earlier in (error.__cause__, error.__context__):
        if earlier is not None and earlier.__traceback__ is not None:
            _clear_tracebacks(earlier)


def did_you_mean(wrong: str, names: Iterable[str], before: str = "") -> str:
    """``; did you mean ...?`` with the name most like ``wrong``, after ``before``; an empty text where none is near."""
    close = difflib.get_close_matches(wrong, [name for name in names if not name.startswith("_")], n=1, cutoff=0.5)
    return f"; did you mean {before + close[0]!r}?" if close else ""
