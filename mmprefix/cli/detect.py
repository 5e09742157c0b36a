"""``mmprefix detect MODEL INPUT...``: for each file or row the log odds of what the model was trained to detect."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from mmprefix.cli.inference.rows import InputRow, InputRows
from mmprefix.cli.inference.run import RowReport
from mmprefix.cli.model_inputs import ModelCall, Selection, add_model, add_rows, run_model
from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor


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
    return run_model(args, partial(_call, args, None if answers is None else (answers[0], answers[1])))


def _call(args: argparse.Namespace, answers: tuple[str, str] | None, inputs: InputRows) -> ModelCall[float]:
    def results(model: Predictor, rows: Selection) -> Iterator[float | InputError]:
        return model.stream_detect(rows.values, answers=answers, **rows.call_options(args))

    def line(row: InputRow, score: float) -> dict[str, Any]:
        return _line(row, score, args.label_field)

    return ModelCall([*inputs.name_columns, "score", "label"], results, RowReport(line, _texts))


def _texts(row: InputRow, score: float) -> list[str]:
    return [f"{score:+.3f}"]


def _line(row: InputRow, score: float, label_field: str) -> dict[str, Any]:
    line: dict[str, Any] = {**row.names, "score": score}
    label = row.fields.get(label_field)
    return line if label is None else {**line, "label": label}
