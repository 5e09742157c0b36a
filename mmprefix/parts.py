"""Parts remember how they were built, so that a model can always be written down as a recipe and built again.

Encoders, mappers and decoders are parts. ``to_recipe(part)`` gives ``{class_path, init_args}``, the form that the
Lightning CLI reads; ``from_recipe(recipe, contract)`` gives the part back. Nothing is declared twice.

A class path in a recipe or a saved model is public: ``mmprefix.decoders.CausalDecoder``, whichever file it stands in.
``RENAMED`` keeps the paths of earlier versions readable.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from mmprefix.errors import InputError

P = TypeVar("P", bound="Part")

RENAMED = {  # class path of an earlier version → today's
    "mmprefix.checkpoint_io.AtomicCheckpointIO": "mmprefix.training.AtomicCheckpointIO",
    "mmprefix.decoder.CausalDecoder": "mmprefix.decoders.CausalDecoder",
    "mmprefix.mappers.deep.Deep": "mmprefix.mappers.prefix_tuning.Deep",
    "mmprefix.mappers.deep.DeepTable": "mmprefix.mappers.p_tuning_v2.DeepTable",
    "mmprefix.questioned.QuestionData": "mmprefix.slu.QuestionData",
    "mmprefix.seq2seq.CrossDecoder": "mmprefix.decoders.CrossDecoder",
    "mmprefix.streaming.StreamData": "mmprefix.features.StreamData",
    "mmprefix.task.PrefixTask": "mmprefix.training.PrefixTask",
    "mmprefix.unfreeze.UnfreezeUntil": "mmprefix.training.UnfreezeUntil",
    "mmprefix.world.data.WorldData": "mmprefix.world.WorldData",
    "mmprefix.words.WordDecoder": "mmprefix.decoders.WordDecoder",
}


def with_current_names(data: Any) -> Any:
    """``data`` (plain: dicts, lists, strings ...) with every class path of an earlier version replaced by today's."""
    if isinstance(data, dict):
        return {key: with_current_names(value) for key, value in cast(dict[Any, Any], data).items()}
    if isinstance(data, list):
        return [with_current_names(value) for value in cast(list[Any], data)]
    return RENAMED.get(data, data) if isinstance(data, str) else data


def lazy_exports(package: str, names: dict[str, str]) -> Callable[[str], Any]:
    """A module ``__getattr__`` (PEP 562) for ``package``: public names, each imported from its file at first use."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    return get


def class_path(cls: type) -> str:
    """The public path of a class: of the package that exports it, else of its file."""
    package = sys.modules.get(cls.__module__.rpartition(".")[0])
    public = package is not None and cls.__qualname__ in getattr(package, "__all__", ())
    return f"{package.__name__ if public and package else cls.__module__}.{cls.__qualname__}"


class Part:
    """A building block whose constructor arguments are plain values, lists, dicts or other parts."""

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        part = super().__new__(cls)
        object.__setattr__(part, "init_args", _bind(cls, part, args, kwargs))
        return part


def _bind(cls: type, part: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(cls.__init__)
    try:
        bound = signature.bind(part, *args, **kwargs)
    except TypeError:  # a copy or an unpickled part, whose state follows; or a call that __init__ itself refuses
        return {}
    bound.apply_defaults()
    arguments = dict(list(bound.arguments.items())[1:])
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:  # **more: its members are arguments like any other
            arguments |= arguments.pop(name)
    return arguments


def to_recipe(value: Any) -> Any:
    """``value`` as plain data: parts become ``{class_path, init_args}``, paths strings, containers are walked."""
    if isinstance(value, Part):
        args = {name: to_recipe(item) for name, item in value.init_args.items()}
        return {"class_path": class_path(type(value)), "init_args": args}
    if isinstance(value, dict):
        return {str(key): to_recipe(item) for key, item in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [to_recipe(item) for item in cast(list[Any], value)]
    return str(value) if isinstance(value, Path) else value


def from_recipe(data: dict[str, Any], contract: type[P]) -> P:
    """The part that ``data`` (``{class_path, init_args}``) describes.

    Raises InputError when the class cannot be imported, is no ``contract``, or refuses its arguments: a recipe
    may come from a stranger, so nothing but a part of the wanted kind is ever called.
    """
    path = str(data.get("class_path", ""))
    path = RENAMED.get(path, path)
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"recipe: class_path {path!r} cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise InputError(f"recipe: class_path {path!r} is no {contract.__name__}")
    try:
        arguments = cast(dict[str, Any], data.get("init_args") or {})
        return cls(**{key: _rebuild(value) for key, value in arguments.items()})
    except TypeError as error:
        raise InputError(f"recipe: {path}: {error}") from error


def _rebuild(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast(dict[str, Any], value)
        return from_recipe(items, Part) if "class_path" in items else {k: _rebuild(v) for k, v in items.items()}
    return [_rebuild(item) for item in cast(list[Any], value)] if isinstance(value, list) else value
