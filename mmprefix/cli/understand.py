"""``mmprefix understand MODEL INPUT... --schema S``: intent and slots of each file or row."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from mmprefix.cli.inference.rows import InputRow, InputRows
from mmprefix.cli.inference.run import RowReport
from mmprefix.cli.model_inputs import ModelCall, Selection, add_model, add_rows, run_model
from mmprefix.errors import InputError
from mmprefix.slu.annotation import read_annotation
from mmprefix.slu.schema import read_schema

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor


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
    return run_model(args, partial(_call, args))


def _call(args: argparse.Namespace, inputs: InputRows) -> ModelCall[dict[str, Any]]:
    schema = None if args.schema is None else read_schema(args.schema)
    references = {id(row): _reference(row, args) for row in inputs.rows}

    def results(model: Predictor, rows: Selection) -> Iterator[dict[str, Any] | InputError]:
        options = rows.call_options(args)
        return model.stream_understand(rows.values, schema=schema, framing=args.framing, **options)

    def line(row: InputRow, result: dict[str, Any]) -> dict[str, Any]:
        return {**row.names, **result, **references.get(id(row), {})}

    columns = [*inputs.name_columns, "intent", "slots", "scores", "reference"]
    return ModelCall(columns, results, RowReport(line, _texts))


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
    return [f"{result['intent'] or '(no intent)'}({'; '.join(slots)})"]
