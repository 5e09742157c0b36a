"""Mutations of bytes, texts and nested values, each drawn from a ``random.Random``."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

NUMBERS = (0, -1, 1, 7, 255, 65535, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 10**9, 10**12, 10**30)
ODD_VALUES: tuple[Any, ...] = (
    *NUMBERS, 0.5, -0.5, 1e308, float("nan"), float("inf"), None, True, "", "x", "../..", "/etc/passwd", "\x00",
    "ü" * 300,     "x" * 5000, [], [1], ["a"], {}, {"a": 1}, {"class_path": "os.system"}, [[[[[[]]]]]], "1", "null",
    "2020-01-01", "mmprefix:world/frozen/decoder", "${oc.env:HOME}", "!!python/object:os.system",
)  # fmt: skip
WORDS = (
    '"', "'", "\n", "\r", "\r\n", "\t", ",", ";", "|", "\x00", "\ufeff", "\u2028", "{", "}", "[", "]", ":", "#", "&a ",
    "*a", "<<: *a", "!!date ", "null", "NaN", "1e999", "\\ud800", "\\", "-", "../", "caption", "id", "::", "%",
    "\x1b[2J",
)  # fmt: skip


def bytes_of(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """``content`` with one to three mutations, and their names."""
    names: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(_BYTES)
        content = change(content, rng) if content else b"\0"
        names.append(change.__name__.lstrip("_"))
    return content, "+".join(names)


def text_of(content: str, rng: random.Random) -> tuple[str, str]:
    """``content`` with one to three mutations of its characters, lines and words, and their names."""
    names: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        change = rng.choice(_TEXTS)
        content = change(content, rng)
        names.append(change.__name__.lstrip("_"))
    return content, "+".join(names)


def value_in(data: Any, rng: random.Random) -> str:
    """Change, delete, double or rename one value somewhere inside ``data``, in place; returns what was done."""
    places = list(_places(data))
    holder, key, path = rng.choice(places)
    what = rng.random()
    if what < 0.75:
        holder[key] = rng.choice(ODD_VALUES)
        return f"{path}={str(holder[key])[:40]!r}"
    if what < 0.9:
        del holder[key]
        return f"del {path}"
    if isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
        return f"rename {path}"
    holder.append(holder[key])
    return f"double {path}"


def _places(data: Any, path: str = "") -> Any:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key, f"{path}.{key}"
        yield from _places(value, f"{path}.{key}")


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _cut_little(content: bytes, rng: random.Random) -> bytes:
    return content[: max(0, len(content) - rng.randint(1, 64))]


def _flip_bit(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def _flip_in_head(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(min(len(content), 64))
    return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]


def _number_in_head(content: bytes, rng: random.Random) -> bytes:
    place, order = rng.randrange(min(len(content), 80)), rng.choice("<>")
    number = struct.pack(order + "I", rng.choice(NUMBERS[:9]) & 0xFFFFFFFF)
    return content[:place] + number + content[place + 4 :]


def _zeros(content: bytes, rng: random.Random) -> bytes:
    place, count = rng.randrange(len(content)), rng.randint(1, 2000)
    return content[:place] + bytes(min(count, len(content) - place)) + content[place + count :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randint(1, 300)) + content[place:]


def _remove(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.randint(1, 300) :]


def _double(content: bytes, rng: random.Random) -> bytes:
    return content + content[: rng.randint(1, len(content))]


def _empty(content: bytes, rng: random.Random) -> bytes:
    return b""


def _garbage(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((0, 4, 12, 44))] + rng.randbytes(rng.randint(1, 3000))


_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut, _cut, _cut_little, _flip_bit, _flip_bit, _flip_in_head, _number_in_head, _number_in_head, _zeros, _insert,
    _remove, _double, _empty, _garbage,
)  # fmt: skip


def _insert_word(text: str, rng: random.Random) -> str:
    place = rng.randint(0, len(text))
    return text[:place] + rng.choice(WORDS) + text[place:]


def _cut_text(text: str, rng: random.Random) -> str:
    return text[: rng.randint(0, len(text))]


def _drop_line(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    if lines:
        del lines[rng.randrange(len(lines))]
    return "".join(lines)


def _repeat_line(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    if lines:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines) * rng.choice((1, 2, 200)))
    return "".join(lines)


def _indent(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    if lines:
        place = rng.randrange(len(lines))
        lines[place] = rng.choice((" ", "\t", "    ", "- ")) + lines[place]
    return "".join(lines)


def _number(text: str, rng: random.Random) -> str:
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    place = rng.choice(digits) if digits else 0
    return text[:place] + str(rng.choice(NUMBERS)) + text[place + 1 :]


def _long(text: str, rng: random.Random) -> str:
    place = rng.randint(0, len(text))
    return text[:place] + rng.choice(("x", "9", "[", "{", " ", "a,")) * rng.choice((5000, 200_000)) + text[place:]


def _delete(text: str, rng: random.Random) -> str:
    place = rng.randint(0, len(text))
    return text[:place] + text[place + rng.randint(1, 20) :]


_TEXTS: tuple[Callable[[str, random.Random], str], ...] = (
    _insert_word, _insert_word, _insert_word, _cut_text, _drop_line, _repeat_line, _indent, _number, _long, _delete,
)  # fmt: skip
