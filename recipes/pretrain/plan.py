"""Plans of the programs beside the recipes: settings of a training, given as JSON; faults as one plain line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_type_hints

from mmprefix.errors import InputError, did_you_mean

P = TypeVar("P")


def read_plan(kind: type[P], changes: str, before: Mapping[str, Any] | None = None) -> P:
    """Plan of ``kind``, a dataclass of plain settings: those of ``before``, then of ``changes``, a JSON object.

    Raises InputError for text that is no JSON object, for an unknown setting and for a value of another type.
    """
    try:
        changed = json.loads(changes)
    except json.JSONDecodeError as error:
        raise InputError(f'--plan {changes}: is no JSON ({error}); give an object, such as {{"steps": 400}}') from None
    if not isinstance(changed, dict):
        raise InputError(f'--plan {changes}: is no JSON object; give one, such as {{"steps": 400}}')
    settings: dict[str, Any] = {**(before or {}), **changed}
    types = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    for name, value in settings.items():
        if name not in names:
            raise InputError(f"plan.{name}: no such setting{did_you_mean(name, names)}; there are {', '.join(names)}")
        if not _fits(value, types[name]):
            choices = " or ".join(map(str, get_args(types[name])))
            raise InputError(f"plan.{name} {value!r}: give {choices or types[name].__name__}")
    return kind(**settings)


def _fits(value: object, kind: Any) -> bool:
    """True where a ``value`` of JSON is of a setting's type: bool, int, float, str or choices."""
    if choices := get_args(kind):
        return value in choices
    kinds = (int, float) if kind is float else kind
    return isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))


def run(program: Callable[[], object]) -> None:
    """Call a program's ``main``; bad input ends it with a plain line on standard error and exit code 2.

    Bad input is what raises InputError, and a file or model that cannot be opened (OSError).
    """
    try:
        program()
    except (InputError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
