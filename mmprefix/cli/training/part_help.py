"""``mmprefix fit --model.decoder.help [NAME]``: parts that an option takes, and the options of one.

Pages come from the table of parts, so nothing heavy is imported, and sizes that the model gives are not in them. A
class that is not of this package has its help from the parser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmprefix.cli.parts import find_parts, overview, page, parts_table
from mmprefix.errors import InputError

_KINDS = {  # last level of an option → kinds of parts that it takes
    "encoder": ("encoder",),
    "mapper": ("mapper",),
    "mappers": ("mapper",),
    "prefix": ("mapper",),
    "decoder": ("decoder",),
    "transcriber": ("transcriber",),
    "branches": ("encoder", "mapper"),
    "data": ("data",),
}


def part_help(words: Sequence[str]) -> str | None:
    """Help that ``words`` ask for by ``--OPTION.help [NAME]``; None where they ask for none, or for a foreign class.

    Raises InputError for a name that is none of this package's parts.
    """
    for word, follower in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or not flag.endswith(".help"):
            continue
        name = value if equals else "" if follower.startswith("-") else follower
        kinds = _KINDS.get(flag.split(".")[-2].removeprefix("--"), ())
        if not kinds or ("." in name and not name.startswith("mmprefix.")):
            return None
        return _page_of(flag.removesuffix(".help"), name) if name else _pages(kinds)
    return None


def with_parts(text: str) -> str:
    """Parser's help ``text`` with the list of all parts, in place of the classes that happen to be imported."""
    text = re.sub(r",\s+known\s+subclasses:\s+mmprefix[\w.]*(?:,\s+mmprefix[\w.]*)*", "", text)
    if "--model.branches" not in text:
        return text
    listed = overview(row for row in parts_table() if row["kind"] not in ("task", "settings"))
    return f"{text}\nparts of a recipe (mmprefix parts NAME shows the options of one):\n\n{listed}\n"


def _pages(kinds: Sequence[str]) -> str:
    rows = [row for row in parts_table() if row["kind"] in kinds]
    branch = [row for row in parts_table() if row["name"] == "Branch"] if len(kinds) > 1 else []
    return "\n\n".join([overview(rows), *(page(row) for row in [*branch, *rows])])


def _page_of(option: str, name: str) -> str:
    try:
        return "\n\n".join(page(row) for row in find_parts(name))
    except InputError as error:
        raise InputError(f"{option}.help: {error}") from error
