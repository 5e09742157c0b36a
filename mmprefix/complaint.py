"""What jsonargparse says of a wrong recipe, in one plain line that names the option and the nearest right one.

A class inside a recipe has a parser of its own. Its complaint is made plain first, with the options of that class at
hand; the parsers around it only add where it stood.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable
from typing import Any

_PLAIN = re.compile(
    r"(option '[^'\n]+' is not known[^\n]*|class_path [^\n]+: no such class[^\n]*|option [\w.]+: expected [^\n]+)"
)
_EXTRA = re.compile(r"Option '([\w.]+)' is not accepted")
_GROUP = re.compile(r"(?:Group '([\w.]+)'|Subcommand '\w+') does not accept option '([\w.]+)'")
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: (--?[\w.-]+)")
_NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_PARSER_KEY = re.compile(r'Parser key "([\w.]+)"')
_TYPE = re.compile(r"Expected an? (?:<class '(\w+)'>|([^\n]+?))\. Got value: ([^\n]+)")


def explain(message: str, parser: Any) -> str:
    """One line for ``message`` of ``parser``; the raw last line, and where it stood, if no rule knows better."""
    where = _PARSER_KEY.findall(message)
    if found := _PLAIN.search(message):
        return f"{'.'.join(where)}: {found[1]}" if where else found[1]
    known = {action.dest for action in parser._actions}
    if found := _EXTRA.search(message):
        return _placed(where, _unknown(found[1], known))
    if found := _GROUP.search(message):
        return _unknown(f"{found[1]}.{found[2]}" if found[1] else found[2], known)
    if found := _UNKNOWN.search(message):
        return _unknown(found[1].lstrip("-"), known)
    if found := _NO_CLASS.search(message):
        classes = vars(importlib.import_module(found[1]))
        return _placed(where, f"class_path {found[1]}.{found[2]}: no such class{_nearest(found[2], classes)}")
    if (found := _TYPE.search(message)) and where:
        return f"option {'.'.join(where)}: expected {found[1] or found[2]}, got {found[3].strip()}"
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()] or ["wrong usage"]
    return _placed(where, lines[-1] if where else " ".join(lines)[:300])


def _unknown(option: str, known: set[str]) -> str:
    """Names the first part of a dotted option that no known option begins with, and the nearest one that does."""
    parts = option.split(".")
    for depth in range(1, len(parts) + 1):
        head = ".".join(parts[:depth])
        if not any(name == head or name.startswith(f"{head}.") for name in known):
            level = {".".join(name.split(".")[:depth]) for name in known}
            return f"option {head!r} is not known{_nearest(head, level)}"
    return f"option {option!r} is not known"


def _placed(where: list[str], text: str) -> str:
    return f"{'.'.join(where)}: {text}" if where else text


def _nearest(wrong: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, [name for name in names if not name.startswith("_")], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
