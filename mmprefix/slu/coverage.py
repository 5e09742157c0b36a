"""Schema coverage of a manifest: rows that do not fit the schema, and label counts of the others."""

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
    """Faults of the rows that do not fit ``schema``, and figures of the other rows as plain data.

    ``intent_field`` is as for ``read_annotation``. Figures: "intents" and "slots" count each label of the schema;
    "free" counts the values of slots without a list of values; of these, "in_transcript" and "not_in_transcript" occur
    or do not occur in their row's transcript (rows without one count in neither), and "with_separator" contain ", "
    and would be split into several values.
    """
    faults: list[RowFault] = []
    good: list[tuple[Annotation, Mapping[str, Any]]] = []
    for example in examples:
        row = row_fields(example)
        try:
            gold = read_annotation(row, intent_field)
            messages = schema_errors(schema, gold)
        except InputError as error:
            faults.append(example.fault(str(error)))
            continue
        if schema.intents and gold.intent is None:
            messages.append(f"no intent in the field {intent_field!r} (--intent-field names another)")
        if messages:
            faults.append(example.fault("; ".join(messages)))
        else:
            good.append((gold, row))
    spoken = [_in_transcript(row, value) for gold, row in good for value in _free_values(gold, schema)]
    return faults, {
        "name": schema.name,
        "intents": _counts(schema.intents, [gold.intent for gold, _ in good if gold.intent is not None]),
        "slots": _counts(schema.slots, [slot for gold, _ in good for slot in gold.slots]),
        "free": len(spoken),
        "in_transcript": spoken.count(True),
        "not_in_transcript": spoken.count(False),
        "with_separator": sum(SEPARATOR in value for gold, _ in good for value in _free_values(gold, schema)),
    }


def lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Printed lines of the figures of ``schema_coverage``."""
    for group in ("intents", "slots"):
        counts = figures[group]
        if counts:
            present = [f"{name} {count}" for name, count in counts.items() if count]
            line = f"  {group:<9} {len(present)} of {len(counts)} in schema {figures['name']}"
            yield f"{line}: {', '.join(present)}" if present else line
    transcribed = figures["in_transcript"] + figures["not_in_transcript"]
    if figures["not_in_transcript"]:
        yield f"  {'values':<9} {figures['not_in_transcript']} of {transcribed} do not occur in their row's transcript"
    if figures["with_separator"]:
        yield f"  {'values':<9} {figures['with_separator']} contain {SEPARATOR!r}, which separates several values"


def _counts(labels: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """Count of each of ``labels`` in ``names``, the most frequent first."""
    counts = Counter(dict.fromkeys(labels, 0))
    counts.update(name for name in names if name in labels)
    return dict(counts.most_common())


def _free_values(gold: Annotation, schema: Schema) -> Iterator[str]:
    for slot, values in gold.slots.items():
        if slot in schema.slots and not schema.slots[slot].values:
            yield from values


def _in_transcript(row: Mapping[str, Any], value: str) -> bool | None:
    """True where the row's transcript contains ``value``; None where the row has no transcript."""
    transcript = row.get("transcript")
    return fold(value) in fold(transcript) if isinstance(transcript, str) else None
