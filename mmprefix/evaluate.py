"""``mmprefix evaluate``: score a file of predictions that anything may have written. No torch is imported.

A line of the file is ``{"id": ..., "prediction": ..., "references": [...]}``; other keys are ignored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmprefix.metrics import FenseModels, NotAvailable, caption
from mmprefix.metrics.caption import EXTRA, NAMES
from mmprefix.metrics.tokenizer import TOKENIZERS
from mmprefix.types import InputError

TASKS = ("caption", "slu", "detection")
_BUILT = ("caption",)


class Predictions(NamedTuple):
    """What a file holds, line by line in its order."""

    ids: list[str]
    predictions: list[str]
    references: list[list[str]]


def _record(line: str, place: str) -> tuple[str, str, list[str]]:
    """Id, prediction and references of one line; ``place`` is file:line for the message."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise InputError(f"{place}: a line must be an object with id, prediction and references")
    missing = [key for key in ("id", "prediction", "references") if key not in record]
    if missing:
        raise InputError(f"{place}: no {' and no '.join(missing)}; a line needs id, prediction and references")
    name, prediction, texts = record["id"], record["prediction"], record["references"]
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise InputError(f"{place}: id must be a string or a whole number, not {json.dumps(name)}")
    if not isinstance(prediction, str):
        raise InputError(f"{place}: prediction must be a string, not {json.dumps(prediction)}")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: references must be a list of strings")
    if not texts:
        raise InputError(f"{place}: no references for id {name!r}; give at least one")
    return str(name), prediction, texts


def read_predictions(path: str | Path) -> Predictions:
    """The predictions of a JSON-lines file; raises ``InputError`` with file and line for the first bad one."""
    read, lines = Predictions([], [], []), {}
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name, prediction, references = _record(line, f"{path}:{number}")
        if name in lines:
            raise InputError(f"{path}:{number}: id {name!r} stands in line {lines[name]} already")
        lines[name] = number
        read.ids.append(name)
        read.predictions.append(prediction)
        read.references.append(references)
    if not read.ids:
        raise InputError(f"{path}: no predictions; a line is a JSON object with id, prediction and references")
    return read


def _wanted(names: str | None) -> list[str]:
    """The measures that ``--metrics`` names, in its order; all that need nothing more where it is absent."""
    wanted = list(NAMES) if names is None else [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in (*NAMES, *EXTRA)]
    if unknown or not wanted:
        given = unknown[0] if unknown else names
        raise InputError(f"--metrics {given}: no such measure; use some of {','.join((*NAMES, *EXTRA))}")
    return list(dict.fromkeys(wanted))


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``mmprefix evaluate``."""
    parser.add_argument("predictions", metavar="PREDICTIONS.jsonl", help="lines of id, prediction, references")
    parser.add_argument("--task", choices=TASKS, default="caption", help="what was predicted (default: caption)")
    parser.add_argument(
        "--tokenize", choices=tuple(TOKENIZERS), default="ptb", help="Penn Treebank words, or cut at white space"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with full precision")
    parser.add_argument(
        "--metrics", metavar="NAME,NAME", help=f"which to print; on demand also {', '.join(EXTRA)} (mmprefix[metrics])"
    )
    parser.add_argument("--fense-sentences", metavar="FOLDER", help="FENSE's sentence encoder")
    parser.add_argument("--fense-detector", metavar="FILE", help="FENSE's fluency detector, a checkpoint")
    parser.add_argument("--fense-backbone", metavar="FOLDER", help="configuration and tokenizer of the detector's BERT")


def run(args: argparse.Namespace) -> int:
    """Print the scores; 0, or 1 where a measure that was asked for is not available. Raises ``InputError``."""
    if args.task not in _BUILT:
        raise InputError(f"--task {args.task} is not built yet; use --task {' or '.join(_BUILT)}")
    wanted = _wanted(args.metrics)
    read = read_predictions(args.predictions)
    models = None
    if args.fense_sentences:
        models = FenseModels(args.fense_sentences, args.fense_detector, args.fense_backbone)
    scores = caption(read.predictions, read.references, args.tokenize)
    missing: dict[str, str] = {}
    for name in wanted:
        if name in EXTRA and name not in scores:
            try:
                scores |= caption(read.predictions, read.references, args.tokenize, extra=[name], models=models)
            except NotAvailable as error:
                missing[name] = str(error)
    if args.json:
        report = {"task": args.task, "tokenizer": args.tokenize, "items": len(read.ids)}
        report["scores"] = {name: scores[name] for name in wanted if name in scores}
        sys.stdout.write(json.dumps(report | {"not_available": missing}, ensure_ascii=False) + "\n")
    else:
        rows = [("tokenizer", args.tokenize), ("items", str(len(read.ids)))]
        rows += [(name, missing[name] if name in missing else f"{scores[name]:.4f}") for name in wanted]
        sys.stdout.write(_table(rows))
    return 1 if missing else 0
