"""Arguments and inputs shared by caption, understand, detect and transcribe."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mmprefix.cli.inference.open_model import add_loading, open_model
from mmprefix.cli.inference.output import open_output, prepare_output
from mmprefix.cli.inference.row_file import FORMATS, RowFile, StandardOutput
from mmprefix.cli.inference.rows import (
    MANIFESTS,
    BadInputs,
    InputRow,
    InputRows,
    file_rows,
    manifest_rows,
    rows_for_kinds,
)
from mmprefix.cli.inference.run import RowReport, write_results
from mmprefix.cli.spellings import utf8_text
from mmprefix.data.manifest import INPUTS, read_texts
from mmprefix.data.manifest_file import RowError
from mmprefix.errors import InputError
from mmprefix.inference.model_folder import find_model
from mmprefix.media.kinds import KINDS

if TYPE_CHECKING:
    from mmprefix.inference.call_options import CallOptions
    from mmprefix.inference.predictor import Predictor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Selection:
    """Rows that a model can read, with its input and its context for each, and those that it cannot."""

    rows: list[InputRow]
    values: list[Any]
    contexts: list[str]
    bad: BadInputs

    @property
    def context(self) -> list[str] | None:
        """Context of each row, None where none has one."""
        return self.contexts if any(self.contexts) else None

    def call_options(self, args: argparse.Namespace) -> CallOptions:
        """Context, batch size and permission of addresses, as a Predictor's calls take them."""
        return {"context": self.context, "batch_size": args.batch_size, "allow_urls": args.allow_urls}

    def without_done(self, output: RowFile | StandardOutput) -> Selection:
        """The rows that ``output`` does not hold yet."""
        todo = [n for n, row in enumerate(self.rows) if not output.is_done(row.id)]
        values, contexts = [self.values[n] for n in todo], [self.contexts[n] for n in todo]
        return Selection([self.rows[n] for n in todo], values, contexts, self.bad)


def add_model(
    parser: argparse.ArgumentParser,
    text: str = "a saved model directory, a hub repository, or a recipe (.yaml), whose parts are used untrained",
    *,
    required: bool = True,
) -> None:
    """Add the options for the model, of which ``text`` says what it may be, its device, precision and parts."""
    parser.add_argument("model", metavar="MODEL", nargs=None if required else "?", help=text)
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="inputs at once (default 16)")
    add_loading(parser)


def add_rows(parser: argparse.ArgumentParser, contexts: bool = True) -> None:
    """Add the options for the inputs (files, folders, manifests) and for the output."""
    parser.add_argument(
        "files",
        metavar="INPUT",
        nargs="*",
        help="files, folders (all that the model reads, at any depth), quoted patterns such as 'photos/**/*.jpg', "
        "manifests (csv, tsv, jsonl); archive.zip::member reads inside a zip",
    )
    parser.add_argument("--manifest", metavar="FILE", help="the rows of a manifest instead of files")
    parser.add_argument("--media-root", metavar="DIR", help="folder of the manifest's files (default: its own)")
    parser.add_argument("--split", help="only the manifest's rows of this split")
    parser.add_argument("--allow-urls", action="store_true", help="inputs may be addresses, which are downloaded")
    if contexts:
        parser.add_argument(
            "--context", type=utf8_text, metavar="TEXT", help="text that the model reads beside each input"
        )
        parser.add_argument(
            "--context-field",
            metavar="NAME",
            help="column of a row's context, such as asr_1best or transcript; A,B takes the first that is not empty",
        )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        metavar="FILE",
        help="write to this file, row by row; a run that was stopped goes on where it was with the same command",
    )
    output.add_argument(
        "--format", choices=FORMATS, help="form of the rows (default: by the suffix of --out, or jsonl)"
    )
    output.add_argument("--overwrite", action="store_true", help="write the file of --out anew")
    output.add_argument(
        "--progress", action="store_true", help="say how far the run is, where standard error is a file"
    )


_DECODING: list[tuple[str, type, str, str]] = [  # option, type, metavar, sentence
    ("num_beams", int, "N", "beams of the search"),
    ("max_new_tokens", int, "N", "most tokens of a text"),
    ("min_new_tokens", int, "N", "fewest tokens of a text"),
    ("length_penalty", float, "X", "power of the length that a score is divided by; above 1: longer"),
    ("no_repeat_ngram_size", int, "N", "no N tokens in a row occur twice"),
    ("temperature", float, "X", "draw texts, below 1 nearer to the likeliest; with beams: their scores"),
    ("top_p", float, "X", "draw texts among the likeliest tokens of this share"),
    ("seed", int, "N", "draw texts; one N gives the same texts each time"),
]


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add the options of decoding; those that are left out are the model's own."""
    decoding = parser.add_argument_group("decoding", "What is left out is as the model was trained and saved.")
    for name, kind, metavar, text in _DECODING:
        decoding.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    decoding.add_argument("--start-with", type=utf8_text, metavar="TEXT", help="how every text begins")
    for name, text in (("must-hold", "contains"), ("avoid", "must not contain")):
        help_text = f"word or phrase that every text {text}, whole and in any case; several, or the option again"
        decoding.add_argument(f"--{name}", type=utf8_text, nargs="+", action="extend", metavar="PHRASE", help=help_text)
    decoding.add_argument(
        "--num-return", type=int, default=1, metavar="N", help="texts an input, best first (default 1)"
    )


def decoding_of(args: argparse.Namespace) -> dict[str, Any]:
    """Values of the options of decoding by name, None for those that are left out."""
    names = [*(name for name, *_ in _DECODING), "start_with", "must_hold", "avoid"]
    return {name: getattr(args, name) for name in names}


@dataclass(frozen=True)
class ModelCall(Generic[Result]):
    """Call of a saved model: columns of a table, results of the selected rows as they come, and their form."""

    columns: Sequence[str]
    results: Callable[[Predictor, Selection], Iterator[Result | InputError]]
    report: RowReport[Result]


def run_model(args: argparse.Namespace, call: Callable[[InputRows], ModelCall[Result]]) -> int:
    """Run the model that ``args`` names on its inputs, and write a row each; returns the exit code.

    ``call`` says what to do with the inputs, before anything heavy is imported.
    """
    folder = find_model(args.model)
    inputs = read_input_rows(args)
    plan = call(inputs)
    with open_output(args, plan.columns, folder, as_json=args.json) as output:
        model = open_model(args)
        todo = select_model_inputs(args, inputs, model).without_done(output)
        rows = zip(todo.rows, plan.results(model, todo), strict=True)
        return write_results(args, output, rows, plan.report, total=len(todo.rows), bad=todo.bad)


def read_input_rows(args: argparse.Namespace) -> InputRows:
    """Inputs that the options of ``add_rows`` name.

    Raises InputError that lists them all where none can be read; for neither files nor manifest, or both; and for an
    output file that is a folder.
    """
    context = getattr(args, "context", None)
    if args.out:
        prepare_output(Path(args.out))
    if args.manifest is not None:
        if args.files or context is not None:
            other = "a file" if args.files else "--context"
            raise InputError(f"--manifest {args.manifest}: cannot be combined with {other}; give one of them")
        return manifest_rows(args, args.manifest)
    if not any(name.lower().endswith(MANIFESTS) for name in args.files):
        for option in ("media_root", "split", "context_field", "inputs"):
            if getattr(args, option, None):
                raise InputError(f"--{option.replace('_', '-')} applies to --manifest FILE, which is missing")
    if not args.files:
        if context is None and getattr(args, "prompt", None) is None:
            raise InputError("no input given; give files, or --manifest FILE")
        return InputRows([InputRow("text", {}, context or "", {})])
    return file_rows(args)


def select_model_inputs(args: argparse.Namespace, inputs: InputRows, model: Predictor) -> Selection:
    """Rows that ``model`` reads, with its inputs and contexts.

    A manifest's row gives the columns that the model reads, restricted to those that ``--inputs`` names. Raises
    InputError where no row has one of them, and for an option that names an input the model does not read.
    """
    kinds, reads_text = model.kinds, model.model.reads_text
    columns = _columns(args, [*kinds, *(["text"] if reads_text else [])])
    for option in ("context", "context_field"):
        if getattr(args, option, None) and not reads_text:
            raise InputError(f"--{option.replace('_', '-')}: this model reads no context; leave it out")
    needed = [name for name in columns if name != "user" or getattr(args, "user", None) is None]
    words = [name for name in columns if name in kinds and KINDS[kinds[name]].lists == "texts"]
    words += ["history"] if model.model.wording.history and "history" not in words and "text" in columns else []
    selection = Selection([], [], [], inputs.bad)
    lacking: list[str] = []
    for row in rows_for_kinds(inputs.rows, kinds):
        files = {name: item for name, item in row.inputs.items() if name in kinds and name in columns}
        try:
            files |= read_texts(row.fields, words)
        except RowError as error:
            lacking.append(f"{row.manifest}: row {row.id!r}: {error}")
            continue
        context = row.context if "text" in columns else ""
        if not row.fields and not row.inputs and not context and needed:
            raise InputError("no input given; give files, or --manifest FILE: this model reads more than a --prompt")
        if row.fields and not files and not context and columns:
            lack = f"row {row.id!r} has none of {', '.join(columns)}{_advice(args, columns)}"
            lacking.append(f"{row.manifest}: {lack}")
            continue
        selection.rows.append(row)
        selection.values.append(row.inputs.get("", files))
        selection.contexts.append(context)
    if not selection.rows:
        raise InputError(lacking[0])
    for line in lacking:
        selection.bad.add(line)
    return selection


def _columns(args: argparse.Namespace, names: list[str]) -> list[str]:
    named = getattr(args, "inputs", None)
    wanted = names if named is None else [name.strip() for name in named.split(",")]
    for name in wanted:
        if name not in names:
            raise InputError(f"--inputs {named}: this model does not read {name!r}; it reads {', '.join(names)}")
    return wanted


def _advice(args: argparse.Namespace, wanted: list[str]) -> str:
    unnamed = "text" in wanted and not getattr(args, "context_field", None)
    return "; --context-field names the column of its text" if unnamed else ""


def relocated_paths(row: Mapping[str, Any], folder: str | Path, out: str | None) -> dict[str, Any]:
    """Row with its paths, which start in ``folder``, rewritten for a manifest ``out`` (None: the working directory)."""
    source, target = Path(folder), Path(out).parent if out else Path()
    if source.resolve() == target.resolve():
        return dict(row)

    def relocated(value: Any) -> Any:
        """Rewrite a path, or each path of a list; numbers stay as they are."""
        if isinstance(value, list):
            return [relocated(item) for item in value]
        relative = isinstance(value, str) and value and not Path(value).is_absolute()
        return os.path.relpath(source / value, target) if relative else value

    return {**row, **{key: relocated(value) for key, value in row.items() if key in INPUTS}}
