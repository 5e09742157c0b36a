"""Arguments, inputs and output shared by caption, understand, detect and transcribe."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprefix.atomic import disk_errors_as_input_errors, write_atomically
from mmprefix.data.columns import ColumnMapping
from mmprefix.data.manifest import INPUTS, Example, InputRef, listing, read_manifest
from mmprefix.data.manifest_file import raw_rows
from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor


@dataclass(frozen=True)
class InputRow:
    """Input of a run.

    ``id`` is a file name or a row's id, ``inputs`` holds files and numbers by manifest column ("": a file without a
    manifest), ``fields`` the manifest row (empty for files).
    """

    id: str
    inputs: Mapping[str, str | InputRef]
    context: str
    fields: Mapping[str, Any]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options for the model, its device and precision, and the folders of its parts."""
    parser.add_argument("model", metavar="MODEL", help="a saved model directory, or a hub repository")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="inputs at once (default 16)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="precision of the frozen parts")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="MODULE", help="module whose classes the model may name"
    )
    parser.add_argument(
        "--part", action="append", default=[], metavar="NAME=PLACE", help="new folder of a frozen part that has moved"
    )


def add_rows(parser: argparse.ArgumentParser, contexts: bool = True) -> None:
    """Add the options for the inputs (files, or a manifest) and for the output file."""
    parser.add_argument("files", metavar="FILE", nargs="*", help="sounds; archive.zip::member reads inside a zip")
    parser.add_argument("--manifest", metavar="FILE", help="the rows of a manifest instead of files")
    parser.add_argument("--media-root", metavar="DIR", help="folder of the manifest's files (default: its own)")
    parser.add_argument("--split", help="only the manifest's rows of this split")
    if contexts:
        parser.add_argument("--context", metavar="TEXT", help="transcript, for models that read one")
        parser.add_argument(
            "--context-field",
            metavar="NAME",
            help="column of a row's transcript, such as asr_1best or transcript; A,B takes the first that is not empty",
        )
    parser.add_argument("--out", metavar="FILE", help="write JSON lines to this file instead of printing")


def open_model(args: argparse.Namespace) -> Predictor:
    """Load the model that the options of ``add_model`` name."""
    from transformers.utils import logging

    from mmprefix.inference.loading import load

    parts = dict(_pair(text) for text in args.part)
    logging.disable_progress_bar()
    return load(args.model, device=args.device, dtype=args.dtype, parts=parts, allow=args.allow)


def read_input_rows(args: argparse.Namespace) -> list[InputRow]:
    """Inputs that the options of ``add_rows`` name.

    Raises InputError that lists all bad rows of a manifest; for neither files nor manifest, or both; and for an output
    file that is a folder.
    """
    context = getattr(args, "context", None)
    if args.out:
        _prepare_output(Path(args.out))
    if args.manifest is None:
        for option in ("media_root", "split", "context_field", "inputs"):
            if getattr(args, option, None):
                raise InputError(f"--{option.replace('_', '-')} applies to --manifest FILE, which is missing")
        if not args.files and context is None:
            raise InputError("no input given; give files, or --manifest FILE")
        text = context or ""
        return [InputRow(file, {"": file}, text, {}) for file in args.files] or [InputRow("text", {}, text, {})]
    if args.files or context is not None:
        other = "a file" if args.files else "--context"
        raise InputError(f"--manifest {args.manifest}: cannot be combined with {other}; give one of them")
    root = getattr(args, "media_root", None)
    examples, faults = read_manifest(args.manifest, args.split, media_root=root)
    if faults:
        lead = f"{args.manifest}: {len(faults)} bad rows\n" if len(faults) > 1 else ""
        raise InputError(f"{lead}{listing(faults, near=root)}")
    named, written = getattr(args, "context_field", None), raw_rows(args.manifest)
    rows, _ = ColumnMapping(tuple(named.split(",")) if named else ("context",)).apply(examples)
    if named and not any(row.context for row in rows):
        raise InputError(f"--context-field {named}: no row of {args.manifest} has a text in that column")
    return [InputRow(row.id, row.inputs, row.context, _fields(row, written[row.line])) for row in rows]


def _fields(row: Example, written: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a manifest's row as they are written; all captions where they have a row each."""
    if row.rows == 1:
        return {**written, "id": row.id}
    return {
        **{key: value for key, value in written.items() if key != "caption"},
        "id": row.id,
        "captions": [*row.captions],
    }


def select_model_inputs(
    args: argparse.Namespace, rows: list[InputRow], model: Predictor
) -> tuple[list[Any], list[str] | None]:
    """Inputs of ``model`` for ``rows``, and their contexts (None where it reads none or all are empty).

    A manifest's row gives the columns that the model reads, restricted to those that ``--inputs`` names. Raises
    InputError for a row that has none of them, and for an option that names an input the model does not read.
    """
    kinds, reads_text = model.kinds, model.model.reads_text
    wanted = _wanted(args, [*kinds, *(["text"] if reads_text else [])])
    for option in ("context", "context_field"):
        if getattr(args, option, None) and not reads_text:
            raise InputError(f"--{option.replace('_', '-')}: this model reads no context; leave it out")
    inputs: list[Any] = []
    contexts: list[str] = []
    for row in rows:
        files = {name: item for name, item in row.inputs.items() if name in kinds and name in wanted}
        context = row.context if "text" in wanted else ""
        if row.fields and not files and not context:
            raise InputError(f"{args.manifest}: row {row.id!r} has none of {', '.join(wanted)}{_advice(args, wanted)}")
        inputs.append(row.inputs.get("", files))
        contexts.append(context)
    return inputs, contexts if any(contexts) else None


def _wanted(args: argparse.Namespace, names: list[str]) -> list[str]:
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


def write_lines(
    args: argparse.Namespace, lines: Iterable[Mapping[str, Any]], plain: Iterable[str] | None = None
) -> None:
    """Write ``lines`` as JSON to ``--out``; without it print ``plain``, or the JSON lines where ``plain`` is None."""
    text = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    if args.out:
        out = Path(args.out)
        write_atomically(out, lambda fresh: fresh.write_text("".join(text), encoding="utf-8"))
        sys.stdout.write(f"wrote {len(text)} lines: {out}\n")
    else:
        sys.stdout.writelines(text if plain is None else [f"{line}\n" for line in plain])


def _prepare_output(out: Path) -> None:
    """Make the folder of ``out``: a path that cannot be written is refused before any work is done."""
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; give a file")
    with disk_errors_as_input_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)


def _pair(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise InputError(f"--part {text}: expected NAME=PLACE, such as decoder=models/gpt2")
    return name, folder
