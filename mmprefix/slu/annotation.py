"""Gold intent and slots of a manifest's row, and their check against a schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmprefix.errors import InputError
from mmprefix.slu.schema import SEPARATOR, Schema, fold, known


@dataclass(frozen=True)
class Annotation:
    """Meaning of an utterance: its intent (None: unknown), and for each slot present its values in order."""

    intent: str | None
    slots: dict[str, tuple[str, ...]]


def read_annotation(row: Mapping[str, Any], intent: str = "intent") -> Annotation:
    """Intent and slots of a manifest's row.

    ``intent`` names the field of the intent, or several joined by +, whose values are joined with _
    (``scenario+action``, ``action+object+location``). ``slots`` is {type: value or list of values} or a list of
    [type, value], in a table as JSON text; a repeated type has several values, null means absent.
    Raises InputError for any other content.
    """
    parts = [row.get(field) for field in intent.split("+")]
    for field, part in zip(intent.split("+"), parts, strict=True):
        if isinstance(part, list | dict):
            raise InputError(f"{field}: must be a text or a number, found {_json(part)}")
    name = None if None in parts or "" in parts else "_".join(_text(part) for part in parts)
    slots: dict[str, tuple[str, ...]] = {}
    for slot, value in _slot_items(row.get("slots")):
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                slots[slot] = (*slots.get(slot, ()), _value(slot, item))
    return Annotation(name, slots)


def schema_errors(schema: Schema, gold: Annotation) -> list[str]:
    """Messages, one for each label or value of ``gold`` that is not in ``schema`` or would read as an absent slot.

    A schema without intents fits any intent, one without slots any slots: it does not ask about them.
    """
    messages: list[str] = []
    allowed_slots = schema.slots_of(gold.intent)
    if schema.intents and gold.intent is not None and gold.intent not in schema.intents:
        messages.append(f"intent {gold.intent!r} is not in schema {schema.name}{known(gold.intent, schema.intents)}")
    for name, values in gold.slots.items() if schema.slots else ():
        if name not in schema.slots:
            messages.append(f"slot {name!r} is not in schema {schema.name}{known(name, schema.slots)}")
            continue
        if name not in allowed_slots:
            messages.append(f"slot {name!r}: intent {gold.intent!r} has no such slot{known(name, allowed_slots)}")
        allowed = schema.slots[name].values
        for value in values:
            if fold(value) == fold(schema.none):
                messages.append(f"slot {name!r}: {value!r} means that it is absent; leave it out")
            elif allowed and value not in allowed:
                messages.append(f"slot {name!r}: {value!r} is not among its values{known(value, allowed)}")
    return messages


def join_values(values: Iterable[str]) -> str:
    """Answer for one value or several, joined by ", "."""
    return SEPARATOR.join(values)


def split_values(answer: str) -> tuple[str, ...]:
    """Values in an answer: inverse of ``join_values`` for values that do not contain ", "."""
    return tuple(value.strip() for value in answer.split(SEPARATOR) if value.strip())


def _slot_items(slots: Any) -> list[tuple[str, Any]]:
    if isinstance(slots, str):
        try:
            slots = json.loads(slots)
        except ValueError:
            raise InputError(f"slots: a text must be JSON, found {_json(slots)}") from None
    if slots is None:
        return []
    if isinstance(slots, dict):
        return list(slots.items())
    if not isinstance(slots, list):
        raise InputError(f"slots: must be an object or a list of [type, value], found {_json(slots)}")
    for pair in slots:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InputError(f"slots: each must be [type, value], found {_json(pair)}")
    return [(pair[0], pair[1]) for pair in slots]


def _value(slot: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"slots.{slot}: must be a text, found {_json(value)}")
    text = _text(value).strip()
    if not fold(text):
        raise InputError(f"slots.{slot}: {text!r} holds no words; leave the slot out where it is absent")
    return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]
