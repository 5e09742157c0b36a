"""Which fields of a manifest hold the context and the target, where they are called otherwise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmprefix.manifest import Example, Fault


@dataclass(frozen=True)
class Fields:
    """``context``: the first of these fields that holds a text, or a list of texts, is the context. ``target``: the
    field that holds what is to be written, a text, a number or a truth value; None: captions, as they are."""

    context: tuple[str, ...] = ("context",)
    target: str | None = None

    def apply(self, examples: Sequence[Example]) -> tuple[list[Example], list[Fault]]:
        """The examples with contexts and targets from these fields, and the faults of those that lack the target."""
        found: list[Example] = []
        faults: list[Fault] = []
        for example in examples:
            fields = values(example)
            texts = next((texts for name in self.context if (texts := _texts(fields.get(name)))), ())
            row = replace(example, context=texts[0] if texts else "", contexts=texts[1:])
            if self.target is None:
                found.append(row)
                continue
            target = fields.get(self.target)
            if target is None or isinstance(target, list | dict) or target == "":
                faults.append(example.fault(f"{self.target}: holds no text, number or truth value to be written"))
            else:
                found.append(replace(row, captions=(target if isinstance(target, str) else json.dumps(target),)))
        return found, faults


def values(example: Example) -> dict[str, Any]:
    """All fields of a row that are no files, by their names in the manifest."""
    known = {"context": example.context, "prompt": example.prompt, "label": example.label, "user": example.user}
    return {"id": example.id, "split": example.split, **known, **example.extra}


def _texts(value: Any) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in given if isinstance(text, str) and text.strip())
