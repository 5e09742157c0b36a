"""Errors in a recipe as one plain line that names the option and the nearest valid one.

``check_recipe`` compares a recipe's options with the known ones before anything is built. ``explain`` rewrites the
messages of jsonargparse. A class inside a recipe has a parser of its own, whose message is rewritten first, with the
options of that class; the parsers around it only prepend the option that holds the class.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mmprefix.cli.class_names import KINDS, wrong_class
from mmprefix.errors import InputError, did_you_mean
from mmprefix.trust.modules import refusal
from mmprefix.trust.plain_yaml import read_yaml

_PLAIN = re.compile(
    r"((?:\w+: )?option '[^'\n]+' is not known[^\n]*|"
    r"(?:\w+: )?class_path [^\n]+: (?:no such class|not a subclass of |is an? )[^\n]*|"
    r"(?:\w+: )?option [\w.]+: expected [^\n]+)"
)
_EXTRA = re.compile(r"Option '([\w.]+)' is not accepted")
_GROUP = re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'")
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: (--?[\w.-]+)")
_CLASS_NAME = re.compile(
    r"(?:class_path '|import path string: |Given value: |'class_path': '|class_path=')([A-Za-z][\w.]*)"
)
_NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_OTHER_CLASS = re.compile(r"Expected '([\w.]+)' to be a subclass of <class '(?:[\w.]+\.)?(\w+)'>")
_DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")
_PARSER_KEY = re.compile(r'Parser key "([\w.]+)"')
_TYPE = re.compile(r"Expected an? (?:<class '(\w+)'>|([^\n]+?))\. Got value: ([^\n]+)")
_UNION = re.compile(r"Subtypes: \[([^\n]+)\][\s\S]*Given value: ([^\n]+)$")


def explain(message: str, parser: Any) -> str:
    """One line for ``message`` of ``parser``; where no pattern matches, its last line after the option it is about."""
    where = ".".join(_PARSER_KEY.findall(message))
    placed = f"{where}: " if where else ""
    if match := _PLAIN.search(message):
        return placed + match[1]
    if match := _DENIED.search(message):
        return placed + refusal(match[1])
    if match := _EXTRA.search(message):
        return placed + unknown_option(match[1], options(parser))
    if match := _GROUP.search(message):
        return unknown_option(f"{match[1]}.{match[2]}", options(parser))
    if match := _UNKNOWN.search(message):
        return unknown_option(match[1].lstrip("-"), options(parser))
    if wrong := _class_error(message, where):
        return placed + wrong
    if (match := _TYPE.search(message)) and where:
        return f"option {where}: expected {_type(match[1] or match[2])}, got {match[3].strip()}"
    if (match := _UNION.search(message)) and where:
        return f"option {where}: expected {_type(match[1])}, got {match[2].strip()}"
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()] or ["wrong usage"]
    return placed + (lines[-1] if where else " ".join(lines))


def _class_error(message: str, where: str) -> str:
    """Line about the class that ``message`` refuses at option ``where``; empty where it refuses none."""
    kind = KINDS.get(where.rpartition(".")[2], "")
    if (match := _CLASS_NAME.search(message)) and (wrong := wrong_class(match[1], kind) if kind else ""):
        return wrong
    if match := _NO_CLASS.search(message):
        classes = vars(importlib.import_module(match[1]))
        return f"class_path {match[1]}.{match[2]}: no such class{did_you_mean(match[2], classes)}"
    if match := _OTHER_CLASS.search(message):
        return f"class_path {match[1]}: not a subclass of {match[2]}"
    return ""


def options(parser: Any) -> set[str]:
    """Dotted option names of ``parser``, without its hidden ones."""
    shown = (action.dest for action in parser._actions if action.help != argparse.SUPPRESS)
    return {name for name in shown if not name.endswith(".help")}


def _type(name: str) -> str:
    """``int or null`` for ``<class 'int'>, <class 'NoneType'>``, and ``one of 'a', 'b'`` for a Literal."""
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name).replace("NoneType", "null")
    name = re.sub(r"(?:[\w.]+\.)?Callable\[\[[^\]]*\], (?:\w+\.)*(\w+)\]", r"\1", name)  # a function that makes it
    if "Literal[" in name:
        return "one of " + re.sub(r"(?:typing\.)?Literal\[([^\]]+)\]", r"\1", name)
    return name.replace(", ", " or ")


_CLASS = ("class_path", "init_args", "dict_kwargs")
_CLASSES = ("model.decoder", "model.optimizer")  # data may also hold plain options of PairData
_BRANCHES, _BRANCH = "model.branches", ("encoder", "mapper", "context")


def recipes_of(words: Sequence[str]) -> list[Path]:
    """Existing files that ``--config`` names on a command line."""
    names: list[str] = []
    for word, follower in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-c"):
            names.append(value if equals else follower)
    return [Path(name) for name in names if Path(name).is_file()]


def check_recipe(file: Path, known: Collection[str]) -> None:
    """Raise InputError if ``file`` is not a YAML mapping, or has an option that is not in ``known`` (dotted names)."""
    recipe = read_yaml(file)
    if not isinstance(recipe, dict):
        kind = "nothing" if recipe is None else "a list" if isinstance(recipe, list) else "plain text"
        raise InputError(f"{file}: not a recipe: expected options such as model, data and trainer, found {kind}")
    try:
        _check(recipe, known, "")
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def unknown_option(option: str, known: Collection[str]) -> str:
    """Message for an unknown dotted ``option``: its first unknown level, and the nearest name in ``known``."""
    parts = option.split(".")
    for depth in range(1, len(parts) + 1):
        head, before = ".".join(parts[:depth]), ".".join(parts[: depth - 1])
        if not any(name == head or name.startswith(f"{head}.") for name in known):
            inside = f"{before}." if before else ""
            level = {name.removeprefix(inside).split(".")[0] for name in known if name.startswith(inside)}
            close = did_you_mean(parts[depth - 1], level, inside) or "; options: " + ", ".join(sorted(level))
            return f"option {head!r} is not known{close}"
    return f"option {option!r} is not known"


def _check(options: dict[str, Any], known: Collection[str], before: str) -> None:
    for key, value in options.items():
        option = f"{before}{key}"
        inside = any(name.startswith(f"{option}.") for name in known)
        if option not in known and not inside:
            raise InputError(unknown_option(option, known))
        if option == _BRANCHES and isinstance(value, dict):
            for name, branch in value.items():
                _check_parts(branch, f"{option}.{name}")
        elif inside and isinstance(value, dict) and "class_path" not in value:
            _check(value, known, f"{option}.")
        elif inside and isinstance(value, bool | int | float | list):
            raise InputError(f"option {option}: expected options by name, got {str(value)[:60]}")
        else:
            _check_class(value, option)


def _check_parts(branch: Any, option: str) -> None:
    if not isinstance(branch, dict):
        raise InputError(f"option {option!r}: expected encoder and mapper, got {branch}")
    for key, part in branch.items():
        _refuse(key, option, _BRANCH)
        _check_class(part, f"{option}.{key}")
    if "encoder" not in branch:  # PrefixLM checks whether it needs a mapper
        raise InputError(f"option {option!r}: has no encoder")


def _check_class(value: Any, option: str) -> None:
    """Check the keys of a class (``class_path``, ``init_args``); its own parser checks the arguments."""
    if isinstance(value, dict) and (option in _CLASSES or any(key in value for key in _CLASS)):
        for key in value:
            _refuse(key, option, _CLASS)


def _refuse(key: str, option: str, allowed: Sequence[str]) -> None:
    if key not in allowed:
        close = did_you_mean(str(key), allowed) or f"; expected {allowed[0]} and {allowed[1]}"
        raise InputError(f"option '{option}.{key}' is not known{close}")
