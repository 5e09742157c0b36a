"""Output of a run: standard output, or the file of ``--out``, gone on with where the same options made its rows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmprefix.atomic import disk_errors_as_input_errors
from mmprefix.cli.inference.row_file import FORMATS, RowFile, RowWriter, StandardOutput, open_row_file
from mmprefix.errors import InputError
from mmprefix.inference.model_folder import RECIPE
from mmprefix.weights.source import fingerprint

_NOT_IN_ROWS = (  # options that say which rows, where, and how fast, and not what stands in them
    "allow", "allow_urls", "batch_size", "device", "files", "json", "manifest", "media_root", "model", "out",
    "overwrite", "part", "progress", "split",
)  # fmt: skip


def output_form(args: argparse.Namespace, *, as_json: bool = False) -> str | None:
    """Form of the rows, one of ``FORMATS``; None for plain lines on standard output, unless ``as_json``."""
    if not args.out:
        return args.format or ("jsonl" if as_json else None)
    suffix = Path(args.out).suffix.lower().lstrip(".")
    return args.format or (suffix if suffix in FORMATS else "jsonl")


@contextmanager
def open_output(
    args: argparse.Namespace, columns: Sequence[str], model: Path, *, as_json: bool = False
) -> Iterator[RowFile | StandardOutput]:
    """Output of a run: the file of ``--out``, gone on with where it is there, or standard output.

    ``columns`` are those of a table, ``model`` the folder of the model, ``as_json`` asks for JSON lines on standard
    output where no format is given.
    """
    form = output_form(args, as_json=as_json)
    writer = None if form is None else RowWriter(form, columns)
    if not args.out or writer is None:
        yield StandardOutput(writer)
        return
    options = {
        f"--{name.replace('_', '-')}": _recorded(value)
        for name, value in vars(args).items()
        if name not in _NOT_IN_ROWS
    }
    options |= {"--format": form, "model": model_fingerprint(model)}
    if writer.header:
        options["columns"] = ",".join(columns)
    with open_row_file(RowFile(Path(args.out), writer), options, args.overwrite) as file:
        yield file


def model_fingerprint(model: Path) -> str:
    """Hash of a file, or of what was trained and of its recipe; of another folder its path and its configuration's."""
    if model.is_file():
        return fingerprint([model])
    if (model / RECIPE).is_file():
        return fingerprint(file for file in (model / RECIPE, model / "model.safetensors") if file.is_file())
    return f"{model} {fingerprint(model.glob('*.json'))}"


def prepare_output(out: Path) -> None:
    """Make the folder of ``out``: a path that cannot be written is refused before any work is done."""
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; give a file")
    with disk_errors_as_input_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)


def _recorded(value: Any) -> Any:
    """Value of an option as it is remembered beside the rows: of a file its hash, so that a changed one is noticed."""
    if isinstance(value, str) and Path(value).is_file():
        return f"{value} ({fingerprint([Path(value)])[:12]})"
    return value
