"""``mmprefix fit --help``: all options. ``mmprefix fit --model.decoder.help [NAME]``: the parts that an option takes.

Pages come from the table of parts, so nothing heavy is imported, and sizes that the model gives are not in them. A
class that is not of this package has its help from the parser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmprefix.cli.parts import PLAIN, find_parts, option_lines, overview, page, parts_table
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
_GROUPS = {  # part whose options a verb has → title
    "PrefixTask": "the model",
    "GenerateOptions": "search",
    "PromptTemplate": "templates of context, prompt and question",
    "PairData": "data (--data CLASS names another class, --data.help [NAME] shows its options)",
    "Trainer": "the trainer, Lightning's",
}


def _word(name: str, kind: str, default: Any, text: str) -> dict[str, Any]:
    return {"name": name, "type": kind, "default": default, "help": text}


_WORDS = [  # options of Lightning's command line, and those that are read before it
    _word("config", "file", None, "Recipe, also without --config; of several the later ones win."),
    _word("print_config", "switch", False, "Print all options with their values, and stop."),
    _word("seed_everything", "bool or int", True, "Seed of all random generators; true: draw one."),
    _word("ckpt_path", "file or last or best", None, "Checkpoint to go on from: a file, or that of the newest run."),
    _word(
        "weights_only",
        "bool or null",
        None,
        "false: a checkpoint may hold any object, and code in it runs; for files of your own.",
    ),
    _word("allow", "module", None, "Module whose classes the recipe may name; more by repeating it."),
    _word("media_root", "folder", None, "Folder of the manifests' files: --data.media_root."),
    _word("verbose", "switch", False, "Show the messages of libraries too."),
    _word("debug", "switch", False, "Show the traceback of an error."),
]
_OF_SAVED_MODELS = [_word("model", "folder", None, "Saved model, in the place of a recipe's model and a checkpoint.")]


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


def command_words(verb: str) -> list[dict[str, Any]]:
    """Rows of the options of the training ``verb`` that belong to no part: name, type, default, help."""
    return _WORDS + (_OF_SAVED_MODELS if verb in ("validate", "test", "predict") else [])


def verb_help(verb: str, sentence: str) -> str:
    """Help of the training ``verb``: its options, each with type, default and a sentence, and all parts of a recipe."""
    rows = {row["name"]: row for row in parts_table()}
    usage = f"usage: mmprefix {verb} RECIPE.yaml [--OPTION VALUE ...]"
    lines = [usage, "", f"{sentence[0].upper()}{sentence[1:]}.", "", "options:"]
    lines += option_lines(command_words(verb), "  --")
    for name in ("RunOptions", "EncodeOptions") if verb == "encode" else ("RunOptions",):
        lines += option_lines(rows[name]["options"], "  --")
    for name, title in _GROUPS.items():
        place = rows[name]["place"]
        groups = [row["place"] for row in rows.values() if row["kind"] == "settings"]  # their own options follow
        options = [option for option in rows[name]["options"] if f"{place}.{option['name']}" not in groups]
        lines += ["", f"{title}:", *option_lines(options, f"  --{place}.")]
    listed = overview(row for row in parts_table() if row["kind"] not in PLAIN)
    return "\n".join([*lines, "", "parts of a recipe (mmprefix parts NAME shows the options of one):", "", listed])


def _pages(kinds: Sequence[str]) -> str:
    rows = [row for row in parts_table() if row["kind"] in kinds]
    branch = [row for row in parts_table() if row["name"] == "Branch"] if len(kinds) > 1 else []
    return "\n\n".join([overview(rows), *(page(row) for row in [*branch, *rows])])


def _page_of(option: str, name: str) -> str:
    try:
        return "\n\n".join(page(row) for row in find_parts(name))
    except InputError as error:
        raise InputError(f"{option}.help: {error}") from error
