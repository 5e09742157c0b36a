"""Write mmprefix/cli/parts.json: every part that a recipe can name, its sentence and its options.

    python docs/make_parts_table.py

``mmprefix parts`` reads the table, so that it answers without importing torch. A test compares the table with the
classes, and the options with those that the command line accepts.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import docstring_parser
from lightning.pytorch import Callback, Trainer

from mmprefix.cli.inference.predictions import WritePredictions
from mmprefix.cli.parts import TABLE
from mmprefix.cli.training.run_options import ENCODE_OPTIONS, RUN_OPTIONS, TRAINER_DEFAULTS
from mmprefix.data.pairs import PairData
from mmprefix.decoders.base import Decoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.picture_set import PictureSet
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.base import Mapper
from mmprefix.mappers.starts import Start
from mmprefix.model import Branch
from mmprefix.parts import class_path
from mmprefix.prompt_template import PromptTemplate
from mmprefix.training.best_checkpoint import BestCheckpoint
from mmprefix.training.checkpoints import LastCheckpoint
from mmprefix.training.objective import Objective
from mmprefix.training.task import PrefixTask
from mmprefix.transcriber import Transcriber

FAMILIES: dict[str, tuple[type, str]] = {  # kind → base class, place in a recipe; kinds in the order of the table
    "encoder": (Encoder, "model.branches.NAME.encoder"),
    "mapper": (Mapper, "model.branches.NAME.mapper, or as a prefix without input at model.prefix"),
    "start": (Start, "start, an option of every learned prefix"),
    "decoder": (Decoder, "model.decoder"),
    "transcriber": (Transcriber, "model.transcriber"),
    "data": (PairData, "data"),
    "task": (PrefixTask, "model"),
    "objective": (Objective, "model.objective"),
    "callback": (Callback, "trainer.callbacks, a list"),
}
SETTINGS: dict[type, str] = {  # plain options, without a class path → place
    Branch: "model.branches.NAME",
    GenerateOptions: "model.generate",
    PromptTemplate: "model.wording",
}
RUNS = {  # options without a class → their sentence
    "RunOptions": "Options of a run: its folder, checkpoints, model and feature store.",
    "EncodeOptions": "Options of `mmprefix encode` alone.",
}
NOT_IN_RECIPES = (ComposedDecoder, PictureSet, BestCheckpoint, LastCheckpoint, WritePredictions)  # built by other code
PACKAGES = ("encoders", "mappers", "distillation", "decoders", "data", "slu", "features", "world", "training")
_MORE = "more"  # ``**more``: options of the base class


def rows() -> list[dict[str, Any]]:
    """One row a part: kind, name, class path, sentence, details, options."""
    for package in PACKAGES:
        module = importlib.import_module(f"mmprefix.{package}")
        for file in pkgutil.walk_packages(module.__path__, f"mmprefix.{package}."):
            importlib.import_module(file.name)
    table: list[dict[str, Any]] = []
    for kind, (base, place) in FAMILIES.items():
        table += [row(kind, cls, place) for cls in sorted(set(family(base)), key=lambda cls: cls.__name__.casefold())]
    table += [row("settings", cls, place) for cls, place in SETTINGS.items()]
    return [*table, trainer_row(), *map(run_row, RUNS.values(), RUNS, (RUN_OPTIONS, ENCODE_OPTIONS))]


def family(base: type) -> Iterator[type]:
    """``base`` and its subclasses of this package that a recipe can name."""
    ours = base.__module__.startswith(tuple(f"mmprefix.{room}" for room in (*PACKAGES, "transcriber")))
    if ours and not base.__name__.startswith("_") and base not in NOT_IN_RECIPES and not inspect.isabstract(base):
        yield base
    for child in base.__subclasses__():
        yield from family(child)


def row(kind: str, cls: type, place: str) -> dict[str, Any]:
    """Row of the table for a class at ``place`` in a recipe."""
    text = docstring_parser.parse(inspect.getdoc(cls) or "", docstring_parser.DocstringStyle.GOOGLE)
    return {
        "kind": kind,
        "name": cls.__name__,
        "class_path": class_path(cls),
        "file_path": f"{cls.__module__}.{cls.__qualname__}",
        "place": place,
        "summary": (text.short_description or "").replace("\n", " "),
        "details": text.long_description or "",
        "options": options(cls),
    }


def trainer_row() -> dict[str, Any]:
    """Row of Lightning's Trainer, with the defaults of a recipe."""
    text = docstring_parser.parse(inspect.getdoc(Trainer.__init__) or "", docstring_parser.DocstringStyle.GOOGLE)
    sentences = {entry.arg_name: " ".join((entry.description or "").split()) for entry in text.params}
    table = [option | {"help": plain_sentence(sentences[option["name"]])} for option in options(Trainer)]
    table = [option | {"default": TRAINER_DEFAULTS.get(option["name"], option["default"])} for option in table]
    path = "lightning.pytorch.Trainer"
    first = {"kind": "trainer", "name": "Trainer", "class_path": path, "file_path": path, "place": "trainer"}
    summary = "Lightning's loop, in the words of its own documentation."
    return first | {"summary": summary, "details": "", "options": table}


def plain_sentence(text: str) -> str:
    """Text of another package as a sentence, without the default that the table has in a column of its own."""
    text = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"``\1``", text)  # roles of Sphinx
    text = re.sub(r"\s*Defaults?:?(?: to)? ``[^`]*``\.?$", "", text).rstrip(" .")
    return f"{text}."


def run_row(summary: str, name: str, table: list[tuple[str, Any, Any, str]]) -> dict[str, Any]:
    """Row of options that belong to no class."""
    options = [{"name": o, "type": type_text(t), "help": sentence, "default": d} for o, t, d, sentence in table]
    first = {"kind": "run", "name": name, "class_path": "", "file_path": "", "place": "its top level"}
    return first | {"summary": summary, "details": "", "options": options}


def options(cls: type) -> list[dict[str, Any]]:
    """Options of a class: those of its constructor without ``sizes``, and those of its base for ``**more``."""
    constructor: Callable[..., Any] = cls.__init__
    if constructor is object.__init__:
        return []
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))  # its docstring explains them
    text = docstring_parser.parse(inspect.getdoc(owner) or "", docstring_parser.DocstringStyle.GOOGLE)
    sentences = {entry.arg_name: " ".join((entry.description or "").split()) for entry in text.params}
    hints = typing.get_type_hints(constructor)
    table: list[dict[str, Any]] = []
    for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
        if name == _MORE:
            own = {option["name"] for option in table}
            table += [option for option in options(cls.__bases__[0]) if option["name"] not in own]
        elif name != "sizes":
            option = {"name": name, "type": type_text(hints[name]), "help": sentences.get(name, "")}
            default = parameter.default
            if default is parameter.empty and type(None) in typing.get_args(hints[name]):
                default = None  # a recipe may leave it out, as the command line reads it
            table.append(option if default is parameter.empty else option | {"default": plain(default)})
    return table


def plain(default: Any) -> Any:
    """Default as JSON; that of a dataclass is its name."""
    if is_dataclass(default):
        return type(default).__name__
    return list(default) if isinstance(default, tuple) else default


def type_text(hint: Any) -> str:
    """``int or null`` for ``int | None``; ``Mapper`` for a function that makes one."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(str(value) for value in inside)
    if origin in (typing.Union, types.UnionType):
        texts = dict.fromkeys(type_text(arg) for arg in inside)
        return " or ".join(sorted(texts, key=_last_null))  # typing keeps the order in which a union was first seen
    if origin in (list, tuple):
        return f"list of {type_text(inside[0])}"
    if origin is dict:
        return f"{type_text(inside[1])} by name"
    if hint is type(None):
        return "null"
    return type_text(inside[-1]) if inside else getattr(hint, "__name__", str(hint))


def _last_null(text: str) -> tuple[bool, str]:
    return text == "null", text


def main() -> None:
    """Write the table."""
    TABLE.write_text(text(), encoding="utf-8")


def text() -> str:
    """Table as it is written."""
    return json.dumps(rows(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
