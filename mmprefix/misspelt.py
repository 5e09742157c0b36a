"""A recipe's options compared with those that exist, before anything is built: the nearest right one is named."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from mmprefix.types import InputError

_CLASS = ("class_path", "init_args", "dict_kwargs")
_CLASSES = ("model.decoder", "model.optimizer")  # data may also be given as plain options of PairData
_BRANCHES, _BRANCH = "model.branches", ("encoder", "mapper")


def nearest(wrong: str, names: Iterable[str], before: str = "") -> str:
    """``; did you mean ...?`` with the name that is most like ``wrong``, after ``before``; nothing where none is."""
    close = difflib.get_close_matches(wrong, [name for name in names if not name.startswith("_")], n=1, cutoff=0.5)
    return f"; did you mean {before + close[0]!r}?" if close else ""


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
            close = nearest(parts[depth - 1], level, inside) or "; there are " + ", ".join(sorted(level))
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
        raise InputError(f"option {place!r}: expected {' and '.join(_BRANCH)}, got {branch}")
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
        close = nearest(str(key), allowed) or f"; expected {allowed[0]} and {allowed[1]}"
        raise InputError(f"option '{place}.{key}' is not known{close}")
