"""``mmprefix detect MODEL FILE...``: for each file or row the log odds of what the model was trained to detect."""

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
    rows = read_input_rows(args)
    model = open_model(args)
    inputs, contexts = select_model_inputs(args, rows, model)
    words = None if answers is None else (answers[0], answers[1])
    scores = model.detect(inputs, context=contexts, answers=words, batch_size=args.batch_size)
    lines = [_line(row, score, args.label_field) for row, score in zip(rows, scores, strict=True)]
    plain = [f"{row.id}: {score:+.3f}" for row, score in zip(rows, scores, strict=True)]
    write_lines(args, lines, None if args.json else plain)
    return 0


def _line(row: InputRow, score: float, label_field: str) -> dict[str, Any]:
    line = {"id" if row.fields else "file": row.id, "score": score}
    label = row.fields.get(label_field)
    return line if label is None else {**line, "label": label}
