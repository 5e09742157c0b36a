"""``mmprefix understand MODEL FILE... --schema S``: the intent and the slots of each file, or of each row."""

from __future__ import annotations

import argparse
from typing import Any

from mmprefix.gold import read_gold
from mmprefix.many import Asked, add_model, add_rows, asked, contexts_of, give, inputs_of, open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_model(parser)
    add_rows(parser)
    parser.add_argument(
        "--schema", metavar="NAME_OR_FILE", help="intents and slots to ask about (default: those it was trained with)"
    )
    parser.add_argument(
        "--framing", choices=["choice", "yesno"], help="how intents are asked for (default: as trained)"
    )
    parser.add_argument(
        "--intent-field", default="intent", metavar="NAME", help="where a row's own intent stands, to compare with"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a file: intent, slots, scores")


def run(args: argparse.Namespace) -> int:
    """Prints or writes a line a file; those of a manifest hold the row's own intent and slots as reference."""
    rows = asked(args, ["audio"])
    model = open_model(args)
    found = model.understand(
        inputs_of(rows) if any(row.inputs for row in rows) else None,
        schema=args.schema,
        framing=args.framing,
        context=contexts_of(rows),
        batch_size=args.batch_size,
    )
    lines = [_line(row, one, args.intent_field) for row, one in zip(rows, found, strict=True)]
    give(args, lines, None if args.json else [_plain(row, one) for row, one in zip(rows, found, strict=True)])
    return 0


def _line(row: Asked, found: dict[str, Any], intent_field: str) -> dict[str, Any]:
    line = {"id": row.id, **found}
    if not row.fields:
        return {"file": row.id, **found}
    gold = read_gold(row.fields, intent_field)
    if gold.intent is None and not gold.slots:
        return line
    slots = {name: values[0] if len(values) == 1 else list(values) for name, values in gold.slots.items()}
    return {**line, "reference": {"intent": gold.intent, "slots": slots}}


def _plain(row: Asked, found: dict[str, Any]) -> str:
    slots = [
        f"{name}={value if isinstance(value, str) else ', '.join(value)}" for name, value in found["slots"].items()
    ]
    return f"{row.id}: {found['intent'] or '(no intent)'}({'; '.join(slots)})"
