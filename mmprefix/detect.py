"""``mmprefix detect MODEL FILE...``: how likely each file, or each row, is what the model was trained to detect."""

from __future__ import annotations

import argparse
from typing import Any

from mmprefix.many import add_model, add_rows, asked, contexts_of, give, inputs_of, open_model
from mmprefix.types import InputError

_COLUMNS = ("audio", "signals")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_model(parser)
    add_rows(parser)
    parser.add_argument(
        "--answers", metavar="YES,NO", help="the two words to compare (default: those it was trained with)"
    )
    parser.add_argument(
        "--inputs",
        metavar="NAME,NAME",
        help="which of a row's inputs to use: audio, signals, text (default: all that the model reads)",
    )
    parser.add_argument("--label-field", default="label", metavar="NAME", help="where a row's own label stands")
    parser.add_argument("--json", action="store_true", help="one JSON object a file: file, score")


def run(args: argparse.Namespace) -> int:
    """Prints or writes a line a file: the log odds; those of a manifest hold the row's own label too."""
    wanted = None if args.inputs is None else [name.strip() for name in args.inputs.split(",")]
    for name in wanted or []:
        if name not in (*_COLUMNS, "text"):
            raise InputError(f"--inputs {args.inputs}: {name!r} is none of {', '.join((*_COLUMNS, 'text'))}")
    answers = None if args.answers is None else tuple(args.answers.split(","))
    if answers is not None and len(answers) != 2:
        raise InputError(f"--answers {args.answers}: give two words with a comma between")
    model = open_model(args)
    rows = asked(args, [name for name in model.model.encoders if wanted is None or name in wanted])
    contexts = contexts_of(rows) if model.model.reads_text and (wanted is None or "text" in wanted) else None
    inputs = inputs_of(rows) if any(row.inputs for row in rows) else None
    scores = model.detect(inputs, context=contexts, answers=answers, batch_size=args.batch_size)  # type: ignore[arg-type]
    lines = []
    for row, score in zip(rows, scores, strict=True):
        line: dict[str, Any] = {"id": row.id, "score": score} if row.fields else {"file": row.id, "score": score}
        label = row.fields.get(args.label_field)
        lines.append(line if label is None else {**line, "label": label})
    give(
        args, lines, None if args.json else [f"{row.id}: {score:+.3f}" for row, score in zip(rows, scores, strict=True)]
    )
    return 0
