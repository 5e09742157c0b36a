"""What jsonargparse says of a wrong recipe, in one plain line that names the option and the nearest right one.

A class inside a recipe has a parser of its own. Its complaint is made plain first, with the options of that class at
hand; the parsers around it only add where it stood.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from mmprefix.misspelt import nearest, unknown_option

_PLAIN = re.compile(
    r"((?:\w+: )?option '[^'\n]+' is not known[^\n]*|(?:\w+: )?class_path [^\n]+: (?:no such class|is no )[^\n]*|"
    r"(?:\w+: )?option [\w.]+: expected [^\n]+)"
)
_EXTRA = re.compile(r"Option '([\w.]+)' is not accepted")
_GROUP = re.compile(r"(?:Group '([\w.]+)'|Subcommand '(\w+)') does not accept option '([\w.]+)'")
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: (--?[\w.-]+)")
_NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_OTHER_CLASS = re.compile(r"Expected '([\w.]+)' to be a subclass of <class '(?:[\w.]+\.)?(\w+)'>")
_PARSER_KEY = re.compile(r'Parser key "([\w.]+)"')
_TYPE = re.compile(r"Expected an? (?:<class '(\w+)'>|([^\n]+?))\. Got value: ([^\n]+)")
_UNION = re.compile(r"Subtypes: \[([^\n]+)\][\s\S]*Given value: ([^\n]+)$")


def explain(message: str, parser: Any) -> str:
    """One line for ``message`` of ``parser``; the raw last line, and where it stood, if no rule knows better."""
    where = ".".join(_PARSER_KEY.findall(message))
    placed = f"{where}: " if where else ""
    if found := _PLAIN.search(message):
        return placed + found[1]
    if found := _EXTRA.search(message):
        return placed + unknown_option(found[1], options(parser))
    if found := _GROUP.search(message):
        return unknown_option(f"{found[1]}.{found[3]}" if found[1] else found[3], options(parser, found[2]))
    if found := _UNKNOWN.search(message):
        return unknown_option(found[1].lstrip("-"), options(parser))
    if found := _NO_CLASS.search(message):
        classes = vars(importlib.import_module(found[1]))
        return f"{placed}class_path {found[1]}.{found[2]}: no such class{nearest(found[2], classes)}"
    if found := _OTHER_CLASS.search(message):
        return f"{placed}class_path {found[1]}: is no {found[2]}"
    if (found := _TYPE.search(message)) and where:
        return f"option {where}: expected {_type(found[1] or found[2])}, got {found[3].strip()}"
    if (found := _UNION.search(message)) and where:
        return f"option {where}: expected {_type(found[1])}, got {found[2].strip()}"
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()] or ["wrong usage"]
    return placed + (lines[-1] if where else " ".join(lines))


def options(parser: Any, verb: str | None = None) -> set[str]:
    """The dotted names that ``parser`` (or its parser of ``verb``) knows."""
    verbs = getattr(parser, "_subcommands_action", None)
    if verb is not None and verbs is not None:
        parser = verbs._name_parser_map[verb]
    return {action.dest for action in parser._actions if not action.dest.endswith(".help")}


def _type(name: str) -> str:
    """``int or null`` for ``<class 'int'>, <class 'NoneType'>``, and ``one of 'a', 'b'`` for a Literal."""
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name).replace("NoneType", "null")
    if "Literal[" in name:
        return "one of " + re.sub(r"(?:typing\.)?Literal\[([^\]]+)\]", r"\1", name)
    return name.replace(", ", " or ")
