"""Columns of a manifest that hold context and target, where they have other names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmprefix.data.manifest import Example, RowFault
from mmprefix.data.manifest_file import TARGETS


@dataclass(frozen=True)
class ColumnMapping:
    """Names of the columns with context and target.

    Args:
        context: the first of these columns that holds a text, or a list of texts, is the context; A+B joins the texts
            of two columns.
        target: the column that holds the target: a text, a number or a truth value; None: the captions.
    """

    context: tuple[str, ...] = ("context",)
    target: str | None = None

    def apply(self, examples: Sequence[Example], needed: bool = True) -> tuple[list[Example], list[RowFault]]:
        """Examples with context and target taken from these columns, and the faults of the others.

        A row that lacks the target is a fault where the target is ``needed``.
        """
        rows = [self._row(example) for example in examples]
        if self.target is None or not needed:
            return rows, []
        message = f"{self.target}: holds no text, number or truth value to be written"
        return [row for row in rows if row.captions], [row.fault(message) for row in rows if not row.captions]

    def _row(self, example: Example) -> Example:
        fields = row_fields(example)
        texts = self._contexts(fields)
        row = replace(example, context=texts[0] if texts else "", contexts=texts[1:])
        if self.target is None or self.target in TARGETS:
            return row
        return replace(row, captions=_target(fields.get(self.target)), lines=())

    def _contexts(self, fields: Mapping[str, Any]) -> tuple[str, ...]:
        for names in self.context:
            texts = [text for name in names.split("+") for text in _texts(fields.get(name))]
            if texts:
                return tuple(texts)
        return ()


def row_fields(example: Example) -> dict[str, Any]:
    """Fields of a row, except its inputs, by their names in the manifest."""
    context = [example.context, *example.contexts] if example.contexts else example.context
    known = {"context": context, "prompt": example.prompt, "label": example.label, "user": example.user}
    return {"id": example.id, "split": example.split, **known, **example.extra}


def _target(value: Any) -> tuple[str, ...]:
    if value is None or isinstance(value, list | dict):
        return ()
    text = value.strip() if isinstance(value, str) else json.dumps(value)
    return (text,) if text else ()


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]
