"""Parts remember how they were built, so that a model can always be written down as a recipe and built again.

Encoders, mappers and decoders are parts. ``recipe(part)`` gives ``{class_path, init_args}``, the form that the
Lightning CLI reads; ``build(recipe, contract)`` gives the part back. Nothing is declared twice.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from mmprefix.types import InputError

P = TypeVar("P", bound="Part")


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


def choose(option: str, value: str, allowed: Collection[str]) -> None:
    """InputError when ``value`` of ``option`` is none of those ``allowed``."""
    if value not in allowed:
        raise InputError(f"{option}: {value!r} is none of {', '.join(allowed)}")


def recipe(value: Any) -> Any:
    """``value`` as plain data: parts become ``{class_path, init_args}``, paths strings, containers are walked."""
    if isinstance(value, Part):
        cls = type(value)
        args = {name: recipe(item) for name, item in value.init_args.items()}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": args}
    if isinstance(value, dict):
        return {str(key): recipe(item) for key, item in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [recipe(item) for item in cast(list[Any], value)]
    return str(value) if isinstance(value, Path) else value


def build(data: dict[str, Any], contract: type[P]) -> P:
    """The part that ``data`` (``{class_path, init_args}``) describes.

    Raises InputError when the class cannot be imported, is no ``contract``, or refuses its arguments: a recipe
    may come from a stranger, so nothing but a part of the wanted kind is ever called.
    """
    path = str(data.get("class_path", ""))
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
        return build(items, Part) if "class_path" in items else {k: _rebuild(v) for k, v in items.items()}
    return [_rebuild(item) for item in cast(list[Any], value)] if isinstance(value, list) else value
