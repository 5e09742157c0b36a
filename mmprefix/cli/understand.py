"""``mmprefix understand MODEL FILE... --schema S``: intent and slots of each file or row."""

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
    """Add the verb's options to ``parser``."""
    add_model(parser)
    add_rows(parser)
    parser.add_argument(
        "--schema", metavar="NAME_OR_FILE", help="intents and slots to ask about (default: those of the training)"
    )
    parser.add_argument(
        "--framing",
        choices=["choice", "yesno"],
        help="one question about all intents, or one about each (default: as trained)",
    )
    parser.add_argument(
        "--intent-field",
        default="intent",
        metavar="NAME",
        help="column of a row's own intent, written as reference (default: intent)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a file: intent, slots, scores")


def run(args: argparse.Namespace) -> int:
    """Print or write a line a file; a manifest's lines hold the row's own intent and slots as ``reference``."""
    rows = read_input_rows(args)
    schema = None if args.schema is None else read_schema(args.schema)
    names = [{"id": row.id} if row.fields else {"file": row.id} for row in rows]
    references = [_reference(row, args) for row in rows]
    model = open_model(args)
    inputs, contexts = select_model_inputs(args, rows, model)
    results = model.understand(
        inputs, schema=schema, framing=args.framing, context=contexts, batch_size=args.batch_size
    )
    lines = [
        {**name, **result, **reference} for name, result, reference in zip(names, results, references, strict=True)
    ]
    plain = [_plain(row, result) for row, result in zip(rows, results, strict=True)]
    write_lines(args, lines, None if args.json else plain)
    return 0


def _reference(row: InputRow, args: argparse.Namespace) -> dict[str, Any]:
    """Annotation of a manifest's row as ``{"reference": {intent, slots}}``; empty where the row has none."""
    try:
        gold = read_annotation(row.fields, args.intent_field)
    except InputError as error:
        raise InputError(f"{args.manifest}: row {row.id!r}: {error}") from error
    if gold.intent is None and "slots" not in row.fields:
        return {}
    slots = {name: values[0] if len(values) == 1 else list(values) for name, values in gold.slots.items()}
    return {"reference": {"intent": gold.intent, "slots": slots}}


def _plain(row: InputRow, result: dict[str, Any]) -> str:
    slots = [
        f"{name}={value if isinstance(value, str) else ', '.join(value)}" for name, value in result["slots"].items()
    ]
    line = f"{row.id}: {result['intent'] or '(no intent)'}({'; '.join(slots)})"
    return " ".join(line.splitlines())  # an answer may hold line breaks
