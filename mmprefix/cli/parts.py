"""``mmprefix parts [NAME]``: encoders, mappers, decoders and other parts of a recipe, each with its options.

The table ``parts.json`` is written from the classes by ``docs/make_parts_table.py``, so nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError, did_you_mean
from mmprefix.parts import RENAMED

TABLE = Path(__file__).with_name("parts.json")
TITLES = {  # kind → title of its list
    "encoder": "encoders",
    "mapper": "mappers",
    "start": "starts of a learned prefix",
    "decoder": "decoders",
    "transcriber": "transcribers",
    "data": "data",
    "task": "the model",
    "objective": "objectives",
    "callback": "callbacks",
    "settings": "groups of options",
    "trainer": "the trainer",
    "run": "options of a run",
}
PLAIN = ("task", "settings", "trainer", "run")  # a recipe holds their options without class_path and init_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a part (MLP), its class path, or a kind (encoders, mappers, decoders)"
    )
    parser.add_argument("--json", action="store_true", help="print the rows of the table as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list of all parts, or the options of some; returns the exit code."""
    rows = parts_table() if args.name is None else find_parts(args.name)
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    elif args.name is None:
        sys.stdout.write(f"{overview(rows)}\n\nmmprefix parts NAME shows the options of a part, or of a kind\n")
    else:
        sys.stdout.write("\n\n".join(page(row) for row in rows) + "\n")
    return 0


@cache
def parts_table() -> list[dict[str, Any]]:
    """Rows with ``kind``, ``name``, ``class_path``, ``place`` in a recipe, ``summary``, ``details`` and ``options``."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def find_parts(name: str) -> list[dict[str, Any]]:
    """Rows of the part or kind called ``name``, in any case. Raises InputError with the nearest name."""
    rows = parts_table()
    asked = RENAMED.get(name, name).casefold()
    kinds = [row for row in rows if asked in (row["kind"], TITLES[row["kind"]])]
    chosen = kinds or [row for row in rows if asked in _names(row)]
    if not chosen:
        known = [str(row["name"]) for row in rows]
        near = did_you_mean(name.rpartition(".")[2], [*TITLES, *known]) or f"; parts: {', '.join(known)}"
        raise InputError(f"no part {name!r}{near}")
    return chosen


def _names(row: dict[str, Any]) -> set[str]:
    """Spellings of a part: its name, its class path, and that of its file."""
    return {row["name"].casefold(), row["class_path"].casefold(), row["file_path"].casefold()}


def overview(rows: Iterable[dict[str, Any]]) -> str:
    """List of parts by kind, a sentence each."""
    lines: list[str] = []
    kind = ""
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            lines += [*([""] if lines else []), f"{TITLES[kind]}:"]
        lines.append(_wrapped(row["summary"], f"  {row['name']:16} ", " " * 19))
    return "\n".join(lines)


def page(row: dict[str, Any]) -> str:
    """Description of a part: its class path, its place in a recipe, and its options with types and defaults."""
    plain = row["kind"] in PLAIN
    lines = [row["name"], *([] if plain else [f"  class_path: {row['class_path']}"])]
    lines += [f"  in a recipe at {row['place']}", "", _wrapped(row["summary"], "  ", "  ")]
    for paragraph in filter(None, row["details"].split("\n\n")):
        lines += ["", _wrapped(paragraph, "  ", "  ")]
    if row["options"]:
        lines += ["", "  options:" if plain else "  options (init_args):"]
    return "\n".join([*lines, *option_lines(row["options"], "    ")])


def option_lines(options: Iterable[dict[str, Any]], before: str) -> list[str]:
    """Each of ``options``: its name behind ``before``, with type and default, and its sentence."""
    lines: list[str] = []
    for option in options:
        default = f"default {_as_yaml(option['default'])}" if "default" in option else "required"
        lines += [f"{before}{option['name']}: {option['type']}, {default}", _wrapped(option["help"], " " * 8, " " * 8)]
    return lines


def _as_yaml(value: Any) -> str:
    """Default as a recipe spells it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _wrapped(text: str, first: str, then: str) -> str:
    """``text`` in lines as wide as the terminal, at most 110 columns."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    plain = " ".join(text.replace("``", "`").split())
    return textwrap.fill(plain, width, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
