"""Words that a shell can complete: verbs, their options and the values of these, recipes. No torch is imported."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mmprefix.cli.parts import parts_table
from mmprefix.cli.training.part_help import command_words

FILES, NOTHING, RECIPES = "files", "nothing", "recipes"
_TEXTS = ("str", "int", "float", "NAME", "WORD", "TEXT", "N", "P", "USER", "ID", "FIELD", "SHARE", "MODULE")
_TEXTS += ("ORIGIN", "ADDRESS")
_OF_TRAINING = {  # of some hundred options the ones that are typed most; --help has all: part of the table → options
    "PairData": "train val test predict root media_root batch_size max_captions num_workers max_tokens long_captions",
    "Trainer": "max_epochs max_steps max_time accelerator devices precision strategy accumulate_grad_batches "
    "gradient_clip_val val_check_interval check_val_every_n_epoch limit_train_batches limit_val_batches "
    "log_every_n_steps enable_progress_bar default_root_dir fast_dev_run",
    "PrefixTask": "start_from warmup recompute self_critical label_smoothing sentence_encoder",
}
_VALUES: dict[str, str | tuple[str, ...]] = {  # of training verbs, where the type does not tell
    "accelerator": ("auto", "cpu", "gpu", "mps"),
    "cache_dtype": ("float16", "float32"),
    "ckpt_path": ("last", "best"),
    "config": RECIPES,
    "devices": "",
    **dict.fromkeys(("dry_run", "no_report", "overwrite", "pack", "test_after_fit"), NOTHING),
    "language": "",
    "license": "",
    "monitor": ("val/loss", "val/cider_d", "val/exact_match", "val/eer"),
    "name": "",
    "precision": ("32-true", "bf16-mixed", "bf16-true", "16-mixed"),
    "strategy": ("auto", "ddp"),
}


@dataclass(frozen=True)
class OptionWord:
    """An option: its spellings, a sentence, and its value: choices, FILES, RECIPES, NOTHING, or "" for a text."""

    names: tuple[str, ...]
    text: str
    value: str | tuple[str, ...]


@dataclass(frozen=True)
class VerbWords:
    """A verb or a command of one: its sentence, options, commands, and what stands without an option."""

    name: str
    text: str
    options: list[OptionWord]
    commands: list[VerbWords] = field(default_factory=list)
    words: str | tuple[str, ...] = FILES


def all_words() -> list[VerbWords]:
    """Words of every verb, in the order of ``mmprefix --help``."""
    from mmprefix.cli.main import TRAINING, VERBS, verb_parser  # which imports this verb

    training = [VerbWords(name, text, list(_training_options(name)), words=RECIPES) for name, text in TRAINING.items()]
    return training + [_of_parser(name, text, verb_parser(name)) for name, (_, text) in VERBS.items()]


def _of_parser(name: str, text: str, parser: argparse.ArgumentParser) -> VerbWords:
    options: list[OptionWord] = []
    commands: list[VerbWords] = []
    words: str | tuple[str, ...] = FILES
    for action in parser._actions:  # argparse has no public list of them
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands = [_of_parser(key, texts.get(key, ""), one) for key, one in action.choices.items()]
        elif action.option_strings:
            options.append(OptionWord(tuple(action.option_strings), action.help or "", _value(action)))
        elif action.choices:
            words = tuple(map(str, action.choices))
    if name == "recipes":
        words = RECIPES
    if name == "parts":
        words = tuple(str(row["name"]) for row in parts_table())
    return VerbWords(name, text, options, commands, words)


def _value(action: argparse.Action) -> str | tuple[str, ...]:
    if action.nargs == 0:
        return NOTHING
    if action.choices:
        return tuple(map(str, action.choices))
    if "--config" in action.option_strings:
        return RECIPES
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    return "" if action.type in (int, float) or metavar.partition(",")[0] in _TEXTS else FILES


def _training_options(verb: str) -> Iterator[OptionWord]:
    rows = {row["name"]: row for row in parts_table()}
    yield OptionWord(("--help", "-h"), "Show all options.", NOTHING)
    own = rows["RunOptions"]["options"] + (rows["EncodeOptions"]["options"] if verb == "encode" else [])
    yield from _of_rows([*command_words(verb), *own], "--")
    for name, chosen in _OF_TRAINING.items():
        options = {option["name"]: option for option in rows[name]["options"]}
        yield from _of_rows([options[key] for key in chosen.split() if key in options], f"--{rows[name]['place']}.")


def _of_rows(options: Iterable[dict[str, Any]], before: str) -> Iterator[OptionWord]:
    """Options of rows of the table of parts."""
    for option in options:
        name, kind = str(option["name"]), str(option["type"])
        value = _VALUES[name] if name in _VALUES else _value_of_type(kind, option.get("default"))
        yield OptionWord((f"{before}{name}",), str(option["help"]), value)


def _value_of_type(kind: str, default: Any) -> str | tuple[str, ...]:
    """Words behind an option whose type the table of parts calls ``kind``, such as "best or last or none"."""
    kinds = [word for word in kind.split(" or ") if word != "null"]
    if kind == "switch":
        return NOTHING
    if set(kinds) == {"bool"} or (isinstance(default, bool) and "bool" in kinds):
        return ("true", "false")
    if set(kinds) & {"int", "float", "module", "timedelta"}:
        return ""
    if all(word.isidentifier() and word.islower() and word not in ("str", "file", "folder") for word in kinds):
        return tuple(kinds)
    return FILES


def short(text: str, most: int = 48) -> str:
    """First words of a sentence for a list of completions, without what argparse fills in."""
    plain = " ".join(text.replace("%(default)s", "").replace("%%", "%").replace("``", "").split())
    plain = plain.partition(" (default")[0].partition(": ")[0].rstrip(".")
    return plain if len(plain) <= most else plain[: plain.rfind(" ", 0, most)] + " ..."
