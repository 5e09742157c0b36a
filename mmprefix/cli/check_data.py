"""``mmprefix check-data``: decode every input of a manifest, report each bad row, and summarise the good ones.

A training runs the same ``inspect`` on headers only, which takes seconds, so both give the same messages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprefix.data.inspect import Inspection, inspect
from mmprefix.data.manifest import RowFault, listing, read_manifest, repeated_inputs
from mmprefix.errors import InputError
from mmprefix.slu import coverage
from mmprefix.slu.schema import Schema, read_schema

if TYPE_CHECKING:
    from mmprefix.cli.training.recipe_data import RecipeData


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmprefix check-data`` to ``parser``."""
    parser.add_argument(
        "manifests", nargs="*", metavar="MANIFEST", help="JSON lines or CSV (default: those of --config)"
    )
    text = "also find captions that are longer than the positions that this recipe's model leaves for them"
    parser.add_argument("--config", metavar="RECIPE", help=text)
    text = "module whose classes the recipe may name"
    parser.add_argument("--allow", action="append", default=[], metavar="MODULE", help=text)
    parser.add_argument("--media-root", metavar="DIR", help="folder of the files (default: that of each manifest)")
    parser.add_argument("--split", help="check only the rows of this split")
    parser.add_argument("--tokenizer", metavar="NAME_OR_FOLDER", help="count tokens too, with this model's tokenizer")
    parser.add_argument("--schema", metavar="NAME_OR_FILE", help="also check intents and slots against this schema")
    parser.add_argument(
        "--intent-field",
        default="intent",
        metavar="NAME",
        help="column of a row's intent; A+B joins two columns with _ (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    threads = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=threads, help="files decoded in parallel (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print each bad row with its faults, then a summary of the good rows; returns 0 when no row is bad.

    Raises InputError (after all has been printed) when a row is bad, a manifest is empty or cannot be read.
    """
    if not args.manifests and args.config is None:
        raise InputError("no manifest is named; give MANIFEST or --config RECIPE")
    count = None if args.tokenizer is None else token_counter(args.tokenizer)
    recipe = None if args.config is None else _recipe(args)
    files = [(file, args.split) for file in args.manifests]
    files = files or [(file, args.split or split) for file, split in (recipe.manifests if recipe else [])]
    root = args.media_root or (recipe.media_root if recipe else None)
    schema = None if args.schema is None else read_schema(args.schema)
    base = CheckOptions(None, count, args.workers, schema, args.intent_field, root, recipe)
    reports = [check_manifest(manifest, replace(base, split=split)) for manifest, split in files]
    if args.json:
        sys.stdout.write(json.dumps({"manifests": reports}, indent=2) + "\n")
    else:
        sys.stdout.writelines(line + "\n" for report in reports for line in _lines(report, root))
    faults = [RowFault(report["manifest"], **fault) for report in reports for fault in report["faults"]]
    if len(faults) == 1:
        raise InputError(f"1 bad row: {faults[0]}")
    if faults:
        rows = sum(report["rows"] for report in reports)
        raise InputError(f"{', '.join(report['manifest'] for report in reports)}: {len(faults)} bad rows of {rows}")
    return 0


def _recipe(args: argparse.Namespace) -> RecipeData:
    from mmprefix.cli.main import find_recipes
    from mmprefix.cli.training.recipe_data import recipe_data

    return recipe_data(find_recipes(["--config", args.config])[1], args.manifests, args.allow)


@dataclass(frozen=True)
class CheckOptions:
    """Options of ``check_manifest``.

    Split (None: all rows), token counter, threads, schema, field of the intents, folder of the files (None: the
    manifest's), data of a recipe.
    """

    split: str | None = None
    count_tokens: Callable[[str], int] | None = None
    workers: int = 1
    schema: Schema | None = None
    intent_field: str = "intent"
    media_root: str | None = None
    recipe: RecipeData | None = None


def check_manifest(manifest: str, options: CheckOptions) -> dict[str, Any]:
    """Faults of ``manifest``, and figures of its good rows (seconds, pixels, frames, words, tokens), as plain data."""
    alone = options.recipe is not None and options.recipe.captions_alone
    root = options.media_root
    examples, unread = read_manifest(manifest, options.split, media_root=root, captions_alone=alone)
    result = inspect(examples, workers=options.workers, progress=True)
    mismatches: list[RowFault] = []
    figures = None
    if options.schema is not None:
        mismatches, figures = coverage.schema_coverage(result.examples, options.schema, options.intent_field)
    long = _long_captions(result, options.recipe)
    faults = sorted([*unread, *result.faults, *mismatches, *long], key=lambda fault: fault.line)
    bad = {fault.line for fault in mismatches}
    rows = [row for row in result.examples if row.line not in bad]
    files = [result.files[pair] for row in rows for pair in row.inputs.items() if pair in result.files]
    captions = [caption for row in rows for caption in row.captions]
    return {
        "manifest": str(manifest),
        "rows": sum(row.rows for row in examples) + len(unread),
        "note": repeated_inputs(rows),
        "splits": dict(Counter(row.split or "none" for row in rows)),
        "faults": [{"line": fault.line, "message": fault.message, "path": fault.path} for fault in faults],
        "inputs": dict(Counter(key for row in rows for key in row.inputs)),
        "text_alone": sum(not row.inputs for row in rows),
        "seconds": _spread([file.seconds for file in files if file.seconds is not None], total=True),
        "width": _spread([file.size[0] for file in files if file.size]),
        "height": _spread([file.size[1] for file in files if file.size]),
        "frames": _spread([file.frames for file in files if file.frames is not None], total=True),
        "captions": _spread([len(row.captions) for row in rows if row.captions], total=True),
        "without_captions": sum(not row.captions for row in rows),
        "words": _spread([len(caption.split()) for caption in captions]),
        "tokens": _spread([options.count_tokens(caption) for caption in captions] if options.count_tokens else []),
        "schema": figures,
    }


def _long_captions(result: Inspection, recipe: RecipeData | None) -> list[RowFault]:
    """Faults of captions that the model of ``recipe`` has no positions for."""
    if recipe is None or recipe.room is None:
        return []
    from mmprefix.data.long_captions import fit_captions

    seconds = {pair: info.seconds or 0.0 for pair, info in result.files.items()}
    examples, _ = recipe.columns.apply(result.examples, needed=False)
    return fit_captions(examples, seconds, recipe.room, prompt=recipe.prompt)[1]


def _spread(values: Sequence[float], total: bool = False) -> dict[str, float] | None:
    if not values:
        return None
    figures = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return figures | ({"total": sum(values)} if total else {})


def _lines(report: Mapping[str, Any], media_root: str | None) -> Iterable[str]:
    faults = [RowFault(report["manifest"], **fault) for fault in report["faults"]]
    if faults:
        yield listing(faults, most=len(faults), near=media_root)
    if report["note"]:
        yield report["note"]
    splits = ", ".join(f"{name} {count}" for name, count in report["splits"].items())
    inputs = ", ".join(f"{name} {count}" for name, count in report["inputs"].items())
    yield f"{report['manifest']}: {report['rows']} rows, {len(report['faults'])} bad"
    yield f"  {'splits':<9} {splits or 'none'}"
    yield f"  {'inputs':<9} {inputs or 'none'}"
    if report["text_alone"]:
        yield f"  {'text':<9} {report['text_alone']} rows of text alone"
    titles = {
        "seconds": "s",
        "width": "pixels",
        "height": "pixels",
        "frames": "",
        "captions": "an input",
        "words": "",
        "tokens": "",
    }
    for key, unit in titles.items():
        figures = report[key]
        if figures:
            spread = ", ".join(f"{name} {_figure(figures[name])}" for name in ("min", "median", "max"))
            total = f"; {_figure(figures['total'])} in all" if "total" in figures else ""
            yield f"  {key:<9} {spread} {unit}".rstrip() + total
    if report["schema"]:
        yield from coverage.lines(report["schema"])
    elif report["without_captions"]:
        yield f"  no caption {report['without_captions']} rows: fine for prediction, an error in training"


def _figure(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"


def token_counter(name: str) -> Callable[[str], int]:
    """Function from a text to its number of tokens; ``name`` is a folder, ``mmprefix:NAME`` or a hub name."""
    from mmprefix.weights.source import resolve_folder

    path = resolve_folder(name)
    if (path / "tokenizer.json").is_file():  # this library loads without torch
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(path / "tokenizer.json"))
        return lambda text: len(fast.encode(text, add_special_tokens=False).ids)
    return _slow_counter(name, path)


def _slow_counter(name: str, path: Path) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--tokenizer {name}: the folder {path} holds no tokenizer") from error
    return lambda text: len(slow(text, add_special_tokens=False)["input_ids"])
