"""Words of the command line as a parser spells them.

``--num-beams`` and ``--num_beams`` are one option, and a recipe may be named without ``--config``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence

from mmprefix.errors import InputError, require_text

SWITCHES = (
    "--dry_run",
    "--no_report",
    "--pack",
    "--help",
    "-h",
    "--print_config",
    "--verbose",
    "--overwrite",
)  # options that stand alone
_BOOLEANS = ("true", "false", "yes", "no")
_NAMED_BY_USER = ("branches", "where")  # options below these are names of branches and of columns


def with_known_spellings(words: Sequence[str], known: Collection[str]) -> list[str]:
    """``words`` with each option in the spelling of ``known``, where they differ in dashes and underscores alone."""
    spelled: list[str] = []
    for i, word in enumerate(words):
        if word == "--":  # only values follow
            return [*spelled, *words[i:]]
        flag, equals, value = word.partition("=")
        spelled.append(f"{known_spelling(flag, known)}{equals}{value}")
    return spelled


def known_spelling(flag: str, known: Collection[str]) -> str:
    """``flag`` as ``known`` spells it; unchanged where it is no option, or no other spelling of one."""
    if flag in known or not flag.startswith("--"):
        return flag
    plain = _plain(flag)
    return next((name for name in known if name.startswith("--") and _plain(name) == plain), flag)


def _plain(flag: str) -> str:
    return flag[2:].replace("_", "-")


def with_underscores(words: Sequence[str]) -> list[str]:
    """``words`` of a training verb with underscores in the names of its options: ``--trainer.max-epochs``.

    Names of branches and columns stay as they are.
    """
    return [_with_underscores(word) if word.startswith("--") else word for word in words]


def _with_underscores(word: str) -> str:
    flag, equals, value = word[2:].partition("=")
    levels = flag.split(".")
    named = [before in _NAMED_BY_USER for before in ["", *levels]]
    spelled = [level if own else level.replace("-", "_") for level, own in zip(levels, named, strict=False)]
    return f"--{'.'.join(spelled)}{equals}{value}"


def recipe_as_option(words: Sequence[str]) -> list[str]:
    """``words`` of a training verb with ``--config`` before each recipe that is named without it."""
    options: list[str] = []
    option = ""  # the one that the next word may be the value of
    for word in words:
        if word.startswith("-") and not re.match(r"-[\d.]", word):
            option = "" if "=" in word else word
        elif option and (option not in SWITCHES or word.lower() in _BOOLEANS):
            option = ""
        else:
            options.append("--config")
            option = ""
        options.append(word)
    return options


def utf8_text(text: str) -> str:
    """Word of the command line that is a text; a file name may hold other bytes, a text may not."""
    try:
        require_text("its text", text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
