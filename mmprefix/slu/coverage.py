"""The rows of a manifest compared with a schema: which of them it does not understand, and what the others mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmprefix.data.columns import row_fields
from mmprefix.data.manifest import Example, RowFault
from mmprefix.errors import InputError
from mmprefix.slu.annotation import Annotation, read_annotation, schema_errors
from mmprefix.slu.schema import SEPARATOR, Schema, fold


def schema_coverage(
    examples: Sequence[Example], schema: Schema, intent_field: str = "intent"
) -> tuple[list[RowFault], dict[str, Any]]:
    """The fault of each row that ``schema`` does not understand, and figures of the other rows as plain data.

    ``intent_field`` is as for ``read_gold``. "intents" and "slots" say how often each label of the schema occurs,
    "free" how many values slots without a list have: of these, "in_transcript" and "not_in_transcript" stand in rows
    with a transcript, and "with_separator" would be taken for several values.
    """
    wrong: list[RowFault] = []
    good: list[tuple[Annotation, Mapping[str, Any]]] = []
    for example in examples:
        row = row_fields(example)
        try:
            gold = read_annotation(row, intent_field)
            messages = schema_errors(schema, gold)
        except InputError as error:
            wrong.append(example.fault(str(error)))
            continue
        if schema.intents and gold.intent is None:
            messages.append(f"no intent in the field {intent_field!r} (--intent-field names another)")
        if messages:
            wrong.append(example.fault("; ".join(messages)))
        else:
            good.append((gold, row))
    said = [_says(row, value) for gold, row in good for value in _free(gold, schema)]
    return wrong, {
        "name": schema.name,
        "intents": _counts(schema.intents, [gold.intent for gold, _ in good if gold.intent is not None]),
        "slots": _counts(schema.slots, [slot for gold, _ in good for slot in gold.slots]),
        "free": len(said),
        "in_transcript": said.count(True),
        "not_in_transcript": said.count(False),
        "with_separator": sum(SEPARATOR in value for gold, _ in good for value in _free(gold, schema)),
    }


def lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """The figures of ``meanings`` for people."""
    for group in ("intents", "slots"):
        counts = figures[group]
        if counts:
            found = {name: count for name, count in counts.items() if count}
            each = ", ".join(f"{name} {count}" for name, count in found.items())
            yield f"  {group:<9} {len(found)} of {len(counts)} in schema {figures['name']}" + (
                f": {each}" if each else ""
            )
    transcribed = figures["in_transcript"] + figures["not_in_transcript"]
    if figures["not_in_transcript"]:
        yield f"  {'values':<9} {figures['not_in_transcript']} of {transcribed} do not occur in their row's transcript"
    if figures["with_separator"]:
        yield f"  {'values':<9} {figures['with_separator']} hold {SEPARATOR!r}, and will be taken for several values"


def _counts(labels: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """How often each of ``labels`` occurs, the most frequent first."""
    counts = Counter(dict.fromkeys(labels, 0))
    counts.update(name for name in names if name in labels)
    return dict(counts.most_common())


def _free(gold: Annotation, schema: Schema) -> Iterator[str]:
    for slot, given in gold.slots.items():
        if slot in schema.slots and not schema.slots[slot].values:
            yield from given


def _says(row: Mapping[str, Any], value: str) -> bool | None:
    """Whether the row's transcript has the words of ``value``; None where it has no transcript."""
    words = row.get("transcript")
    return fold(value) in fold(words) if isinstance(words, str) else None
