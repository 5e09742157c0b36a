"""Most that one input or saved model may ask for: a few bytes can announce a picture or a sound of gigabytes.

Each limit is raised by an environment variable: ``MMPREFIX_MAX_PIXELS``, ``MMPREFIX_MAX_SECONDS``,
``MMPREFIX_MAX_BYTES``, ``MMPREFIX_MAX_TOKENS`` or ``MMPREFIX_MAX_BEAMS``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mmprefix.errors import InputError

DEFAULTS = {
    "pixels": 89_478_485.0,  # of a picture; from here on Pillow warns of decompression bombs
    "seconds": 3600.0,  # of a sound, of what is decoded of it
    "bytes": float(1 << 30),  # of a member of an archive
    "tokens": 10_000.0,  # of a text that is written
    "beams": 1000.0,  # of a search, and texts for one input
}
MIN_RATE = 100  # Hz; a header of 1 Hz turns a second of samples into hours


def limit(name: str) -> float:
    """Limit ``name`` (a key of ``DEFAULTS``). Raises InputError for a variable that is no positive number."""
    variable = f"MMPREFIX_MAX_{name.upper()}"
    text = os.environ.get(variable)
    if text is None:
        return DEFAULTS[name]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise InputError(f"{variable}={text}: give a positive number")
    return value


@contextmanager
def limits_set(**values: float) -> Iterator[None]:
    """Hold all readers of this process to other limits (keys of ``DEFAULTS``) while the block runs."""
    variables = {f"MMPREFIX_MAX_{name.upper()}": str(value) for name, value in values.items()}
    with environment(**variables):
        for name in values:
            limit(name)  # raises InputError for what is no positive number
        yield


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def require_below(name: str, value: float, file: str) -> None:
    """Raise InputError for ``file`` if ``value`` is above the limit ``name``; the message tells how to raise it."""
    if value > limit(name):
        raise InputError(f"{file}: {too_many(name, f'{value:,.0f}')}")


def too_many(name: str, value: str) -> str:
    """Message for a ``value`` above the limit ``name``; it tells how to raise the limit."""
    return f"{value} {name}, the limit is {limit(name):,.0f}; raise it by MMPREFIX_MAX_{name.upper()}"


def require_rate(rate: int, file: str) -> None:
    """Raise InputError for a sound of fewer samples a second than any real one has."""
    if rate < MIN_RATE:
        raise InputError(f"{file}: its header says {rate} Hz; a sound has {MIN_RATE} Hz or more")
