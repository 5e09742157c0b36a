"""Which fields of a manifest hold the context and the target, where they are called otherwise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmprefix.data.manifest import Example, RowFault


@dataclass(frozen=True)
class ColumnMapping:
    """``context``: the first of these fields that holds a text, or a list of texts, is the context. ``target``: the
    field that holds what is to be written, a text, a number or a truth value; None: captions, as they are."""

    context: tuple[str, ...] = ("context",)
    target: str | None = None

    def apply(self, examples: Sequence[Example], needed: bool = True) -> tuple[list[Example], list[RowFault]]:
        """The examples with contexts and targets from these fields.

        Those that lack the target are faults instead, where it is ``needed``.
        """
        rows = [self._row(example) for example in examples]
        if self.target is None or not needed:
            return rows, []
        message = f"{self.target}: holds no text, number or truth value to be written"
        return [row for row in rows if row.captions], [row.fault(message) for row in rows if not row.captions]

    def _row(self, example: Example) -> Example:
        fields = row_fields(example)
        found = (sum((_texts(fields.get(one)) for one in name.split("+")), ()) for name in self.context)
        texts = next((texts for texts in found if texts), ())
        row = replace(example, context=texts[0] if texts else "", contexts=texts[1:])
        return row if self.target is None else replace(row, captions=_written(fields.get(self.target)))


def row_fields(example: Example) -> dict[str, Any]:
    """All fields of a row that are no files, by their names in the manifest."""
    context = [example.context, *example.contexts] if example.contexts else example.context
    known = {"context": context, "prompt": example.prompt, "label": example.label, "user": example.user}
    return {"id": example.id, "split": example.split, **known, **example.extra}


def _written(value: Any) -> tuple[str, ...]:
    if value is None or isinstance(value, list | dict):
        return ()
    text = value.strip() if isinstance(value, str) else json.dumps(value)
    return (text,) if text else ()


def _texts(value: Any) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in given if isinstance(text, str) and text.strip())
