"""``mmprefix understand MODEL FILE... --schema S``: the intent and the slots of each file, or of each row."""

from __future__ import annotations

import argparse
from typing import Any

from mmprefix.cli.model_inputs import (
    InputRow,
    add_model,
    add_rows,
    open_model,
    read_input_rows,
    select_model_inputs,
    write_lines,
)
from mmprefix.errors import InputError
from mmprefix.slu.annotation import read_annotation
from mmprefix.slu.schema import read_schema


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
    rows = read_input_rows(args)
    schema = None if args.schema is None else read_schema(args.schema)
    names = [{"id": row.id} if row.fields else {"file": row.id} for row in rows]
    meant = [_reference(row, args) for row in rows]
    model = open_model(args)
    inputs, contexts = select_model_inputs(args, rows, model)
    found = model.understand(inputs, schema=schema, framing=args.framing, context=contexts, batch_size=args.batch_size)
    lines = [{**name, **one, **reference} for name, one, reference in zip(names, found, meant, strict=True)]
    write_lines(args, lines, None if args.json else [_plain(row, one) for row, one in zip(rows, found, strict=True)])
    return 0


def _reference(row: InputRow, args: argparse.Namespace) -> dict[str, Any]:
    """What a manifest's row says that it means, if it says so."""
    try:
        gold = read_annotation(row.fields, args.intent_field)
    except InputError as error:
        raise InputError(f"{args.manifest}: row {row.id!r}: {error}") from error
    if gold.intent is None and "slots" not in row.fields:
        return {}
    slots = {name: values[0] if len(values) == 1 else list(values) for name, values in gold.slots.items()}
    return {"reference": {"intent": gold.intent, "slots": slots}}


def _plain(row: InputRow, found: dict[str, Any]) -> str:
    slots = [
        f"{name}={value if isinstance(value, str) else ', '.join(value)}" for name, value in found["slots"].items()
    ]
    said = f"{row.id}: {found['intent'] or '(no intent)'}({'; '.join(slots)})"
    return " ".join(said.splitlines())  # an answer may hold line breaks
