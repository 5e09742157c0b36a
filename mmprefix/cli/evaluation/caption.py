"""``mmprefix evaluate --task caption``: captions against references.

A line of the file is ``{"id": ..., "prediction": ..., "references": [...]}``; other keys are ignored. Lines of
``mmprefix caption`` have ``caption`` in place of ``prediction``, and ``file``: the input, which ``--html`` shows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmprefix.cli.evaluation.html_page import media_in, shown_media, write_page
from mmprefix.cli.evaluation.jsonl import format_table, identifier, read_jsonl
from mmprefix.errors import InputError, require_text
from mmprefix.metrics import FenseModels, NotAvailable, caption
from mmprefix.metrics.caption import EXTRA, NAMES
from mmprefix.metrics.caveats import undefined_metrics, word_notes
from mmprefix.metrics.ptb_tokenizer import TOKENIZERS
from mmprefix.weights.source import MODELS, resolve_sentence_encoder

LINE = "lines of id, prediction (a text) and references (a list of texts); for --html also file (the input)"


class Predictions(NamedTuple):
    """Content of a file of predictions, in the order of its lines."""

    ids: list[str]
    predictions: list[str]
    references: list[list[str]]
    media: list[str]


def _record(record: Any, location: str) -> tuple[str, str, list[str], str]:
    """Id, prediction, references and path of the input, or "", of a line; ``location`` is file:line. InputError."""
    if not isinstance(record, dict):
        raise InputError(f"{location}: a line must be an object with id, prediction and references")
    record = {"prediction": record["caption"], **record} if "caption" in record else record  # of mmprefix caption --out
    missing = [key for key in ("id", "prediction", "references") if key not in record]
    if missing:
        raise InputError(f"{location}: no {' and no '.join(missing)}; a line needs id, prediction and references")
    name, prediction, texts = identifier(record["id"], location), record["prediction"], record["references"]
    if not isinstance(prediction, str):
        raise InputError(f"{location}: prediction must be a string, not {json.dumps(prediction)}")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{location}: references must be a list of strings")
    for text in (prediction, *texts):
        require_text(location, text)
    if not texts:
        raise InputError(f"{location}: no references for id {name!r}; give at least one")
    return name, prediction, texts, media_in(record)


def read_predictions(path: str | Path) -> Predictions:
    """Predictions of a JSON-lines file; raises InputError with file and line for the first bad line."""
    read, lines = Predictions([], [], [], []), {}
    for number, line in read_jsonl(path):
        name, prediction, references, media = _record(line, f"{path}:{number}")
        # In the file of a validation two kinds of input may share an id, as a sound and a picture of two manifests do.
        key = (name, str(line["group"]), media) if "group" in line else name
        if key in lines:
            raise InputError(f"{path}:{number}: id {name!r} is already used in line {lines[key]}")
        lines[key] = number
        read.ids.append(name)
        read.predictions.append(prediction)
        read.references.append(references)
        read.media.append(media)
    if not read.ids:
        raise InputError(f"{path}: no predictions; a line is a JSON object with id, prediction and references")
    return read


def _wanted(names: str | None) -> list[str]:
    """Metrics that ``--metrics`` names, in its order; without it, all that need no extra package or model."""
    wanted = list(NAMES) if names is None else [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in (*NAMES, *EXTRA)]
    if unknown or not wanted:
        wrong = unknown[0] if unknown else names
        raise InputError(f"--metrics {wrong}: no such metric; choose from {','.join((*NAMES, *EXTRA))}")
    return list(dict.fromkeys(wanted))


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options of this task to ``parser``."""
    parser.add_argument(
        "--tokenize",
        choices=tuple(TOKENIZERS),
        default="ptb",
        help="ptb: as the Penn Treebank; none: split at white space (default: ptb)",
    )
    parser.add_argument(
        "--metrics", metavar="NAME,NAME", help=f"metrics to print; also {', '.join(EXTRA)}, with mmprefix[metrics]"
    )
    parser.add_argument(
        "--sentence-encoder",
        "--fense-sentences",
        metavar="MODEL",
        help="of sbert_sim and fense: a folder, models:NAME or a hub name",
    )
    parser.add_argument("--fense-detector", metavar="FILE", help="FENSE's fluency detector, a checkpoint")
    parser.add_argument("--fense-backbone", metavar="FOLDER", help="configuration and tokenizer of the detector's BERT")


def _local(name: str) -> Path:
    """Folder of the sentence encoder ``name``; a name that leads to none is refused where a metric needs it."""
    try:
        return resolve_sentence_encoder(name)
    except InputError:
        if name.startswith(MODELS):
            raise
        return Path(name)


def run(args: argparse.Namespace) -> int:
    """Print the scores; returns 0, or 1 where a requested metric is not available. Raises InputError."""
    wanted = _wanted(args.metrics)
    read = read_predictions(args.predictions)
    models = None
    if args.sentence_encoder:
        models = FenseModels(_local(args.sentence_encoder), args.fense_detector, args.fense_backbone)
    notes = word_notes(read.predictions, read.references)
    scores = caption(read.predictions, read.references, args.tokenize)
    missing = {name: reason for name, reason in undefined_metrics(read.references).items() if name in wanted}
    for name in wanted:
        if name in EXTRA and name not in missing and name not in scores:
            try:
                scores |= caption(read.predictions, read.references, args.tokenize, extra=[name], models=models)
            except NotAvailable as error:
                missing[name] = str(error)
    if args.html:
        _write_page(
            args, read, {name: scores[name] for name in wanted if name in scores and name not in missing}, notes
        )
    if args.json:
        report = {"task": args.task, "tokenizer": args.tokenize, "items": len(read.ids)}
        report["scores"] = {name: scores[name] for name in wanted if name in scores and name not in missing}
        report |= {"not_available": missing} | ({"notes": notes} if notes else {})
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        rows = [("tokenizer", args.tokenize), ("items", str(len(read.ids)))]
        rows += [(name, missing[name] if name in missing else f"{scores[name]:.4f}") for name in wanted]
        sys.stdout.write(format_table(rows))
        for note in notes:
            sys.stderr.write(f"mmprefix: {note}\n")
    return 1 if args.metrics and missing else 0


def _write_page(args: argparse.Namespace, read: Predictions, figures: dict[str, float], notes: Sequence[str]) -> None:
    """Write the page of ``--html``. Raises InputError where its file cannot be written."""
    from mmprefix.reports.rows import ScoredText, scored

    media = [shown_media(path, Path(args.predictions).parent) for path in read.media]
    columns = zip(read.ids, media, read.predictions, read.references, strict=True)
    rows = [ScoredText(name, *shown, text, tuple(references)) for name, shown, text, references in columns]
    write_page(args, scored(rows, tokenizer=args.tokenize), figures, notes=notes)
