"""Values of a recipe against the annotations of the class or function that takes them, before it is called.

Python itself does not look: a text in the place of a number would be noticed at the first call of a model, or never.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mmprefix.errors import InputError


def require_types(target: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    """Raise InputError, after ``where``, for the first value that is of another type than ``target`` says.

    Plain annotations are compared: numbers, texts, None, literals, lists, tuples, dicts and unions of these. Options
    without one, and those that take parts, are passed over.
    """
    hints = _hints(target)
    for name, value in options.items():
        if name in hints and not matches(value, hints[name]):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else f"{shown[:50]}..."
            raise InputError(f"{where}: {name}: {shown} is no {_words(hints[name])}")


def matches(value: Any, annotation: Any) -> bool:
    """True if plain ``value`` may stand where ``annotation`` is; a list may stand for a tuple, an int for a float."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(matches(value, choice) for choice in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if annotation in (None, types.NoneType):
        return value is None
    if annotation in (int, float):
        return isinstance(value, Integral if annotation is int else Real) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation) or (annotation is str and isinstance(value, Path))
    plain = origin or annotation
    if plain is dict:
        return isinstance(value, dict) and (not inner or _all_match(value.values(), inner[1]))
    if plain in (list, tuple):
        return isinstance(value, list | tuple) and (not inner or _all_match(value, inner[0]))
    return True


def _all_match(values: Iterable[Any], annotation: Any) -> bool:
    return all(matches(value, annotation) for value in values)


@cache
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by option; none where a name in them is imported for type checkers only."""
    try:
        return get_type_hints(target.__init__ if isinstance(target, type) else target)
    except (NameError, TypeError):
        return {}


def _words(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return text.replace("typing.", "").replace(" | ", " or ")
