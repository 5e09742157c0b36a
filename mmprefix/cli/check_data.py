"""``mmprefix check-data``: every bad row of a manifest, found by really decoding, and what the good rows hold.

``inspect`` is also what stands before a training (headers only there, so that it takes seconds): one message for both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprefix.data.inspect import inspect
from mmprefix.data.manifest import RowFault, read_manifest
from mmprefix.errors import InputError
from mmprefix.slu import coverage
from mmprefix.slu.schema import Schema, read_schema

# --------------------------------------------------------------------------------------------------------- the verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``mmprefix check-data``."""
    parser.add_argument("manifests", nargs="+", metavar="MANIFEST", help="JSON lines or CSV")
    parser.add_argument("--split", help="check the rows of this split only")
    parser.add_argument("--tokenizer", metavar="NAME_OR_FOLDER", help="count tokens too, with this model's tokenizer")
    parser.add_argument("--schema", metavar="NAME_OR_FILE", help="compare intents and slots with this schema, too")
    parser.add_argument(
        "--intent-field",
        default="intent",
        metavar="NAME",
        help="where a row's intent stands; A+B joins two fields with _ (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    threads = min(8, os.cpu_count() or 1)
    parser.add_argument(
        "--workers", type=int, default=threads, help="files decoded side by side (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Prints what is wrong with every bad row, then what the good rows hold; 0 when no row is bad.

    Raises InputError (after all has been printed) when a row is bad, a manifest is empty or cannot be read.
    """
    count = None if args.tokenizer is None else token_counter(args.tokenizer)
    schema = None if args.schema is None else read_schema(args.schema)
    reports = [
        check(manifest, args.split, count, args.workers, schema, args.intent_field) for manifest in args.manifests
    ]
    if args.json:
        sys.stdout.write(json.dumps({"manifests": reports}, indent=2) + "\n")
    else:
        sys.stdout.writelines(line + "\n" for report in reports for line in _lines(report))
    faults = [RowFault(report["manifest"], **fault) for report in reports for fault in report["faults"]]
    if len(faults) == 1:
        raise InputError(f"1 bad row: {faults[0]}")
    if faults:
        rows = sum(report["rows"] for report in reports)
        raise InputError(f"{', '.join(args.manifests)}: {len(faults)} bad rows of {rows}")
    return 0


def check(
    manifest: str,
    split: str | None = None,
    count_tokens: Callable[[str], int] | None = None,
    workers: int = 1,
    schema: Schema | None = None,
    intent_field: str = "intent",
) -> dict[str, Any]:
    """Faults of ``manifest``, and figures of its good rows (seconds, pixels, frames, words, tokens), as plain data."""
    examples, unread = read_manifest(manifest, split)
    result = inspect(examples, workers=workers, progress=True)
    unlike, figures = ([], None) if schema is None else coverage.schema_coverage(result.examples, schema, intent_field)
    faults = sorted([*unread, *result.faults, *unlike], key=lambda fault: fault.line)
    bad = {fault.line for fault in unlike}
    rows = [row for row in result.examples if row.line not in bad]
    looks = [result.files[pair] for row in rows for pair in row.inputs.items() if pair in result.files]
    captions = [caption for row in rows for caption in row.captions]
    return {
        "manifest": str(manifest),
        "rows": len(examples) + len(unread),
        "splits": dict(Counter(row.split or "none" for row in rows)),
        "faults": [{"line": fault.line, "message": fault.message} for fault in faults],
        "inputs": dict(Counter(key for row in rows for key in row.inputs)),
        "text_alone": sum(not row.inputs for row in rows),
        "seconds": _spread([look.seconds for look in looks if look.seconds is not None], total=True),
        "width": _spread([look.size[0] for look in looks if look.size]),
        "height": _spread([look.size[1] for look in looks if look.size]),
        "frames": _spread([look.frames for look in looks if look.frames is not None], total=True),
        "captions": _spread([len(row.captions) for row in rows if row.captions], total=True),
        "without_captions": sum(not row.captions for row in rows),
        "words": _spread([len(caption.split()) for caption in captions]),
        "tokens": _spread([count_tokens(caption) for caption in captions] if count_tokens else []),
        "schema": figures,
    }


def _spread(values: Sequence[float], total: bool = False) -> dict[str, float] | None:
    if not values:
        return None
    figures = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return figures | ({"total": sum(values)} if total else {})


def _lines(report: Mapping[str, Any]) -> Iterable[str]:
    for fault in report["faults"]:
        yield str(RowFault(report["manifest"], fault["line"], fault["message"]))
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
        yield f"  no caption {report['without_captions']} rows: fine for prediction, a fault in training"


def _figure(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"


def token_counter(name: str) -> Callable[[str], int]:
    """How many tokens a text has for the model ``name`` (a folder, ``mmprefix:NAME`` or a hub name)."""
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
