"""``mmprefix detect MODEL INPUT...``: for each file or row the log odds of what the model was trained to detect."""

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to ``parser``."""
    add_model(parser)
    add_rows(parser)
    parser.add_argument("--answers", metavar="YES,NO", help="two answers to compare (default: those of the training)")
    parser.add_argument(
        "--inputs",
        metavar="NAME,NAME",
        help="which of a row's inputs to use: audio, signals, text (default: all that the model reads)",
    )
    parser.add_argument(
        "--label-field",
        default="label",
        metavar="NAME",
        help="column of a row's own label, copied to the output (default: label)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a file: file, score")


def run(args: argparse.Namespace) -> int:
    """Print or write a line a file with its log odds; a manifest's lines hold the row's own label too."""
    answers = None if args.answers is None else [word.strip() for word in args.answers.split(",")]
    if answers is not None and (len(set(answers)) != 2 or len(answers) != 2 or not all(answers)):
        raise InputError(f"--answers {args.answers}: give two words separated by a comma")
    folder = find_model(args.model)
    inputs = read_input_rows(args)
    named = ["id" if any(row.fields for row in inputs.rows) else "file"]
    with open_output(args, [*named, "score", "label"], folder, as_json=args.json) as output:
        model = open_model(args)
        todo = select_model_inputs(args, inputs, model).without_done(output)
        results = model.stream_detect(
            todo.values,
            answers=None if answers is None else (answers[0], answers[1]),
            context=todo.context,
            batch_size=args.batch_size,
            allow_urls=args.allow_urls,
        )

        def line(row: InputRow, score: float) -> dict[str, Any]:
            return _line(row, score, args.label_field)

        rows = zip(todo.rows, results, strict=True)
        return write_results(args, output, rows, RowReport(line, _texts), total=len(todo.rows), bad=todo.bad)


def _texts(row: InputRow, score: float) -> list[str]:
    return [f"{score:+.3f}"]


def _line(row: InputRow, score: float, label_field: str) -> dict[str, Any]:
    line = {"id" if row.fields else "file": row.id, "score": score}
    label = row.fields.get(label_field)
    return line if label is None else {**line, "label": label}
