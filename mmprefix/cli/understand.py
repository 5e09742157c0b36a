"""``mmprefix understand MODEL INPUT... --schema S``: intent and slots of each file or row."""

from __future__ import annotations

import argparse
from typing import Any

from mmprefix.cli.inference.open_model import open_model
from mmprefix.cli.inference.rows import InputRow
from mmprefix.cli.inference.run import RowReport, write_results
from mmprefix.cli.model_inputs import (
    add_model,
    add_rows,
    open_output,
    read_input_rows,
    select_model_inputs,
)
from mmprefix.errors import InputError
from mmprefix.inference.model_folder import find_model
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
    """Print or write a line an input; a manifest's lines hold the row's own intent and slots as ``reference``."""
    folder = find_model(args.model)
    inputs = read_input_rows(args)
    schema = None if args.schema is None else read_schema(args.schema)
    references = {id(row): _reference(row, args) for row in inputs.rows}
    named = ["id" if any(row.fields for row in inputs.rows) else "file"]
    with open_output(args, [*named, "intent", "slots", "scores", "reference"], folder, as_json=args.json) as output:
        model = open_model(args)
        todo = select_model_inputs(args, inputs, model).without_done(output)
        results = model.stream_understand(
            todo.values,
            schema=schema,
            framing=args.framing,
            context=todo.context,
            batch_size=args.batch_size,
            allow_urls=args.allow_urls,
        )

        def line(row: InputRow, result: dict[str, Any]) -> dict[str, Any]:
            return {"id" if row.fields else "file": row.id, **result, **references.get(id(row), {})}

        rows = zip(todo.rows, results, strict=True)
        return write_results(args, output, rows, RowReport(line, _texts), total=len(todo.rows), bad=todo.bad)


def _reference(row: InputRow, args: argparse.Namespace) -> dict[str, Any]:
    """Annotation of a manifest's row as ``{"reference": {intent, slots}}``; empty where the row has none."""
    try:
        gold = read_annotation(row.fields, args.intent_field)
    except InputError as error:
        raise InputError(f"{row.manifest}: row {row.id!r}: {error}") from error
    if gold.intent is None and "slots" not in row.fields:
        return {}
    slots = {name: values[0] if len(values) == 1 else list(values) for name, values in gold.slots.items()}
    return {"reference": {"intent": gold.intent, "slots": slots}}


def _texts(row: InputRow, result: dict[str, Any]) -> list[str]:
    slots = [
        f"{name}={value if isinstance(value, str) else ', '.join(value)}" for name, value in result["slots"].items()
    ]
    text = f"{result['intent'] or '(no intent)'}({'; '.join(slots)})"
    return [" ".join(text.splitlines())]  # an answer may hold line breaks
