"""Class names in a recipe, compared with the table of parts before anything heavy is imported.

A wrong one gets a line with the nearest name and the list of its kind. A name without its module (``MLP``) is that of
the table. Names of other packages are left to the parser.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmprefix.cli.parts import TITLES, parts_table
from mmprefix.errors import InputError
from mmprefix.parts import RENAMED
from mmprefix.trust.plain_yaml import read_yaml

KINDS = {  # option of a recipe → kind of the part that it holds
    "encoder": "encoder",
    "mapper": "mapper",
    "mappers": "mapper",
    "prefix": "mapper",
    "decoder": "decoder",
    "transcriber": "transcriber",
    "data": "data",
}
_OURS = "mmprefix."


def check_class_names(recipes: Iterable[Path]) -> None:
    """Raise InputError for the first part in ``recipes`` whose class is none of its kind in this package."""
    for file in recipes:
        for option, kind, name in _parts_in(read_yaml(file), "", ""):
            if message := wrong_class(name, kind):
                raise InputError(f"{file}: option {option}: {message}")


def wrong_class(name: str, kind: str = "") -> str:
    """Message for a class ``name`` of this package that is no part of ``kind``; empty where nothing is wrong."""
    name = RENAMED.get(name, name)
    if "." in name and not name.startswith(_OURS):
        return ""
    same = [row for row in parts_table() if name in (row["class_path"], row["file_path"], row["name"])]
    if any(row["kind"] == kind or not kind for row in same):
        return ""
    rows = [row for row in parts_table() if row["kind"] == kind or not kind]
    close = difflib.get_close_matches(name.rpartition(".")[2].casefold(), [_plain(row) for row in rows], n=1)
    near = [row["class_path"] for row in rows if _plain(row) in close]
    problem = f"is {_article(same[0]['kind'])}, no {kind}" if same else "no such class"
    advice = f"; did you mean {near[0]!r}?" if near else ""
    listed = f"; {TITLES[kind] if kind else 'parts'}: {', '.join(row['name'] for row in rows)}"
    return f"class_path {name}: {problem}{advice}{listed}"


def with_class_paths(data: Any) -> Any:
    """Plain ``data`` with the class path of each part that ``class_path`` names without its module."""
    if isinstance(data, dict):
        items = {key: with_class_paths(value) for key, value in data.items()}
        name = items.get("class_path")
        return items | {"class_path": full_name(name)} if isinstance(name, str) else items
    return [with_class_paths(value) for value in data] if isinstance(data, list) else data


def with_full_names(words: Sequence[str]) -> list[str]:
    """``words`` with class paths of parts in place of names: ``--model.decoder CausalDecoder``."""
    named: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, value = word.partition("=")
        if equals and _kind(flag):
            word = f"{flag}={full_name(value)}"
        named.append(full_name(word) if _kind(before) else word)
    return named


def full_name(name: str) -> str:
    """Class path of the part called ``name``; unchanged where it is none, or a path already."""
    return next((row["class_path"] for row in parts_table() if row["name"] == name), name)


def _kind(flag: str) -> str:
    """Kind of the part that an option on the command line takes, empty for other words."""
    return KINDS.get(flag.split(".")[-1].removeprefix("--"), "") if flag.startswith("--") else ""


def _parts_in(data: Any, option: str, kind: str) -> Iterator[tuple[str, str, str]]:
    """Option, kind and class name of every part in a recipe."""
    if isinstance(data, list):
        for i, value in enumerate(data):
            yield from _parts_in(value, f"{option}.{i}", kind)
    if isinstance(data, dict):
        if kind and isinstance(data.get("class_path"), str):
            yield option, kind, data["class_path"]
        for key, value in data.items():
            inside = f"{option}.{key}" if option else str(key)
            yield from _parts_in(value, inside.replace(".init_args", ""), KINDS.get(str(key), ""))


def _plain(row: dict[str, Any]) -> str:
    return row["name"].casefold()


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
