"""``mmprefix caption MODEL INPUT...``: a text for every file, of folders and manifests too, by a saved model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from mmprefix.cli.inference.neighbour_options import add_agreement, add_neighbours
from mmprefix.cli.inference.open_model import open_model
from mmprefix.cli.inference.output import output_form
from mmprefix.cli.inference.row_file import TABLES
from mmprefix.cli.inference.rows import InputRow, InputRows
from mmprefix.cli.inference.run import RowReport
from mmprefix.cli.inference.user_options import add_users, user_options
from mmprefix.cli.model_inputs import (
    ModelCall,
    Selection,
    add_decoding,
    add_model,
    add_rows,
    decoding_of,
    read_input_rows,
    run_model,
    select_model_inputs,
)
from mmprefix.cli.spellings import utf8_text
from mmprefix.errors import InputError
from mmprefix.prompt_template import fill_file_variables

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor
    from mmprefix.types import Candidate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to ``parser``."""
    add_model(parser)
    add_rows(parser)
    parser.add_argument(
        "--prompt",
        type=utf8_text,
        metavar="TEXT",
        help="text before the caption (default: a row's own, or the model's); {name}, {stem} and {folder} are those of "
        "the file, a literal brace is doubled",
    )
    add_agreement(add_neighbours(parser))
    add_users(parser, "whom to write for (default: a row's own user)")
    parser.add_argument(
        "--stream", action="store_true", help="print the text of one file piece by piece, while it is written"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a file: file, caption, candidates")
    add_decoding(parser)


def run(args: argparse.Namespace) -> int:
    """Print or write a line an input, as they come; returns the exit code."""
    if args.stream:
        return _run_stream(args)
    return run_model(args, partial(_call, args))


def _call(args: argparse.Namespace, inputs: InputRows) -> ModelCall[list[Candidate]]:
    table = output_form(args) in TABLES

    def results(model: Predictor, rows: Selection) -> Iterator[list[Candidate] | InputError]:
        return model.stream(rows.values, num_return=args.num_return, **_options(args, rows, model))

    def line(row: InputRow, candidates: list[Candidate]) -> dict[str, Any]:
        return _line(row, candidates, table)

    return ModelCall(_columns(inputs, args.num_return), results, RowReport(line, _texts))


def _run_stream(args: argparse.Namespace) -> int:
    """Print the text of the only input in pieces; returns the exit code."""
    for option in ("out", "json", "format"):
        if getattr(args, option):
            raise InputError(f"--stream prints a text alone; leave out --{option}")
    if args.num_return > 1:
        raise InputError(f"--stream prints one text; --num-return {args.num_return} asks for more")
    inputs = read_input_rows(args)
    model = open_model(args)
    rows = select_model_inputs(args, inputs, model)
    if len(rows.rows) + rows.bad.count > 1:
        raise InputError(f"--stream prints the text of one input, not of {len(rows.rows) + rows.bad.count}; give one")
    for piece in model.stream(rows.values[0], **_options(args, rows, model)):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def _options(args: argparse.Namespace, rows: Selection, model: Predictor) -> dict[str, Any]:
    """Keyword arguments of a call for ``rows``."""
    prompts = [_prompt(row, args, model.settings.prompt) for row in rows.rows]
    users = user_options(args, rows.rows, model)
    return {**rows.call_options(args), **decoding_of(args), **users, "prompt": prompts, "agreement": args.agreement}


def _prompt(row: InputRow, args: argparse.Namespace, default: str | None) -> str:
    """Prompt of the command line, of the row, or of the model."""
    if args.prompt is not None:
        files = [item if isinstance(item, str) else item.path for item in row.inputs.values()]
        return fill_file_variables(args.prompt, next((file for file in files if file), None))
    own = row.fields.get("prompt")
    return own if isinstance(own, str) else default or ""


def _columns(inputs: InputRows, count: int) -> list[str]:
    """Columns of a table: a text and a score, and more of both where several texts are asked for."""
    more = [f"{name}_{number}" for number in range(2, count + 1) for name in ("caption", "score")]
    return [*inputs.name_columns, "caption", "score", *more]


def _line(row: InputRow, candidates: list[Candidate], table: bool) -> dict[str, Any]:
    """Object of a row: the best text and all of them, and the user and captions that a manifest has for it."""
    users = {name: row.fields[name] for name in ("user", "true_user") if row.fields.get(name) is not None}
    best = {"caption": candidates[0].text, "score": candidates[0].score}
    if table:
        return {**row.names, **best, **_numbered(candidates)}
    listed = [{"text": candidate.text, "score": candidate.score} for candidate in candidates]
    references = {"references": list(row.references)} if row.references else {}
    return {**row.names, **users, **best, "candidates": listed, **references}


def _texts(row: InputRow, candidates: list[Candidate]) -> list[str]:
    return [candidate.text for candidate in candidates]


def _numbered(candidates: list[Candidate]) -> dict[str, Any]:
    """Columns of the second text and those behind it."""
    pairs = enumerate(candidates[1:], start=2)
    return {f"{name}_{n}": value for n, c in pairs for name, value in (("caption", c.text), ("score", c.score))}
