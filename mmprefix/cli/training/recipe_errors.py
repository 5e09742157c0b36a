"""Errors in a recipe as one plain line that names the option and the nearest right one.

``check_recipe`` compares a recipe's options with those that exist before anything is built. ``explain`` rewrites the
messages of jsonargparse. A class inside a recipe has a parser of its own. Its message is rewritten first, with the
options of that class at hand; the parsers around it only add where it stood.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from mmprefix.errors import InputError, did_you_mean

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
        return f"{placed}class_path {found[1]}.{found[2]}: no such class{did_you_mean(found[2], classes)}"
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


_CLASS = ("class_path", "init_args", "dict_kwargs")
_CLASSES = ("model.decoder", "model.optimizer")  # data may also be given as plain options of PairData
_BRANCHES, _BRANCH = "model.branches", ("encoder", "mapper", "context")


def recipes_of(words: Sequence[str]) -> list[Path]:
    """The files that ``--config`` names on a command line."""
    found: list[str] = []
    for word, follower in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-c"):
            found.append(value if equals else follower)
    return [Path(name) for name in found if Path(name).is_file()]


def check_recipe(file: Path, known: Collection[str]) -> None:
    """Refuses ``file`` if it is no YAML of options, or has one that no name in ``known`` (dotted) begins with."""
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(recipe, dict):
        found = "nothing" if recipe is None else "a list" if isinstance(recipe, list) else "plain text"
        raise InputError(f"{file}: is no recipe: expected options such as model, data and trainer, found {found}")
    try:
        _check(cast(dict[str, Any], recipe), known, "")
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def unknown_option(option: str, known: Collection[str]) -> str:
    """What is wrong with a dotted ``option``: its first part that no name in ``known`` begins with, and the nearest."""
    parts = option.split(".")
    for depth in range(1, len(parts) + 1):
        head, before = ".".join(parts[:depth]), ".".join(parts[: depth - 1])
        if not any(name == head or name.startswith(f"{head}.") for name in known):
            inside = f"{before}." if before else ""
            level = {name.removeprefix(inside).split(".")[0] for name in known if name.startswith(inside)}
            close = did_you_mean(parts[depth - 1], level, inside) or "; there are " + ", ".join(sorted(level))
            return f"option {head!r} is not known{close}"
    return f"option {option!r} is not known"


def _check(options: dict[str, Any], known: Collection[str], before: str) -> None:
    for key, value in options.items():
        option = f"{before}{key}"
        inside = any(name.startswith(f"{option}.") for name in known)
        if option not in known and not inside:
            raise InputError(unknown_option(option, known))
        if option == _BRANCHES and isinstance(value, dict):
            for name, branch in cast(dict[str, Any], value).items():
                _check_parts(branch, f"{option}.{name}")
        elif inside and isinstance(value, dict) and "class_path" not in value:
            _check(cast(dict[str, Any], value), known, f"{option}.")
        else:
            _check_class(value, option)


def _check_parts(branch: Any, place: str) -> None:
    if not isinstance(branch, dict):
        raise InputError(f"option {place!r}: expected encoder and mapper, got {branch}")
    for key, part in cast(dict[str, Any], branch).items():
        _refuse(key, place, _BRANCH)
        _check_class(part, f"{place}.{key}")
    if "encoder" not in branch:  # whether it needs a mapper, its model knows
        raise InputError(f"option {place!r}: has no encoder")


def _check_class(value: Any, place: str) -> None:
    """A class is given by its path and arguments; what these may be, its own parser knows."""
    if isinstance(value, dict) and (place in _CLASSES or any(key in value for key in _CLASS)):
        for key in cast(dict[str, Any], value):
            _refuse(key, place, _CLASS)


def _refuse(key: str, place: str, allowed: Sequence[str]) -> None:
    if key not in allowed:
        close = did_you_mean(str(key), allowed) or f"; expected {allowed[0]} and {allowed[1]}"
        raise InputError(f"option '{place}.{key}' is not known{close}")
