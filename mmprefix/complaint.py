"""What jsonargparse says of a wrong recipe, in one plain line that names the option and the nearest right one."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any

_CLASS = re.compile(r"class_path(?:=|\s|':\s)'([\w.]+)'")
_EXTRA = re.compile(r"Option '([\w.]+)' is not accepted")
_GROUP = re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'")
_KEY = re.compile(r"""(?:Key|key) ["']([\w.]+)["'] (?:is not expected|not expected|unexpected)""")
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: (--?[\w.-]+)")
_NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_PARSER_KEY = re.compile(r'Parser key "([\w.]+)"')
_TYPE = re.compile(r"Expected an? (?:<class '(\w+)'>|([^\n]+?))\. Got value: ([^\n]+)")


def explain(message: str, parser: Any) -> str:
    """One line for ``message`` of ``parser``; the raw last line where no rule knows better."""
    if found := _EXTRA.findall(message):
        wrong = found[-1]
        where, names = _owner(message, wrong)
        return f"the recipe's option {wrong!r}{where} is not known{_nearest(wrong, names)}"
    if found := _GROUP.search(message):
        return _unknown(f"{found[1]}.{found[2]}", parser)
    if found := _KEY.search(message):
        return _unknown(found[1], parser)
    if found := _UNKNOWN.search(message):
        return _unknown(found[1].lstrip("-"), parser)
    if found := _NO_CLASS.search(message):
        return f"class_path {found[1]}.{found[2]!s}: no such class{_nearest(found[2], vars(importlib.import_module(found[1])))}"
    keys = _PARSER_KEY.findall(message)
    if (found := _TYPE.search(message)) and keys:
        return f"option {'.'.join(keys)}: expected {found[1] or found[2]}, got {found[3].strip()}"
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return f"option {'.'.join(keys)}: {lines[-1]}" if keys else lines[-1] if lines else "wrong usage"


def _unknown(option: str, parser: Any) -> str:
    known = {action.dest for action in parser._actions}
    parts = option.split(".")
    heads = {".".join(name.split(".")[: len(parts)]) for name in known}
    for depth in range(1, len(parts) + 1):  # the first part of the option that nothing begins with is the wrong one
        head = ".".join(parts[:depth])
        if not any(name == head or name.startswith(f"{head}.") for name in known):
            level = {".".join(name.split(".")[:depth]) for name in known}
            return f"option {head!r} is not known{_nearest(head, level)}"
    return f"option {option!r} is not known{_nearest(option, heads)}"


def _owner(message: str, wrong: str) -> tuple[str, set[str]]:
    """The class among those that the message names that was given the option ``wrong``, and the options it takes."""
    tail = message.split(f"Option '{wrong}' is not accepted")[-1]
    paths = _CLASS.findall(tail)[:1] or _CLASS.findall(message)[-1:]
    if not paths:
        return "", set()
    module, _, name = paths[0].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return "", set()
    return f" of {name}", set(inspect.signature(cls).parameters)


def _nearest(wrong: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, [name for name in names if not name.startswith("_")], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
