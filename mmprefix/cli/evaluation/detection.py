"""``mmprefix evaluate --task detection``: scores of targets and non-targets.

A line of the file is ``{"id": ..., "score": number, "label": ...}``; the label is true or false, 1 or 0, or one of two
words, where ``--positive`` names the target's. A higher score means target.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmprefix.cli.evaluation.html_page import media_in, shown_media, write_page
from mmprefix.cli.evaluation.jsonl import format_table, identifier, read_jsonl
from mmprefix.errors import InputError
from mmprefix.metrics import det_plot
from mmprefix.metrics.detection import det_curve, detection

LINE = (
    "lines of id, score (a number) and label (true or false, 1 or 0, or two words and --positive); "
    "for --html also file (the input)"
)
_SCORES = ("eer", "threshold", "auc")


class Trial(NamedTuple):
    """One line: its location (file:line), its score, its label as written, its id, and the path of its input or ""."""

    location: str
    score: float
    label: bool | str
    id: str = ""
    media: str = ""


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options of this task to ``parser``."""
    parser.add_argument("--positive", metavar="WORD", help="the label of targets, where labels are two words")
    parser.add_argument("--det", metavar="FILE.png", help="draw the DET curve (.png, .svg, .pdf; mmprefix[plots])")


def run(args: argparse.Namespace) -> int:
    """Print the scores, draw the curve, return 0. Raises InputError that names file and line."""
    if args.det:
        det_plot.check(Path(args.det))
    trials = read_trials(args.predictions)
    labels = _targets(trials, args.positive, args.predictions)
    scores = [trial.score for trial in trials]
    metrics = detection(scores, labels)
    if args.det:
        det_plot.draw(det_curve(scores, labels), Path(args.det))
    if args.html:
        _write_page(args, trials, labels, metrics)
    counts = {"items": len(trials), "targets": metrics["targets"], "nontargets": metrics["nontargets"]}
    if args.json:
        report = {"task": "detection", **counts, "scores": {name: metrics[name] for name in _SCORES}}
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        rows = [(name, str(count)) for name, count in counts.items()]
        sys.stdout.write(format_table(rows + [(name, f"{metrics[name]:.4f}") for name in _SCORES]))
    return 0


def _write_page(
    args: argparse.Namespace, trials: Sequence[Trial], labels: Sequence[bool], figures: Mapping[str, float]
) -> None:
    """Write the page of ``--html``: the DET curve, and the trials that lie furthest on the wrong and the right side."""
    from mmprefix.reports.det import det_figure
    from mmprefix.reports.page import section
    from mmprefix.reports.rows import ScoredText

    folder, threshold = Path(args.predictions).parent, figures["threshold"]
    rows = [
        ScoredText(
            trial.id,
            *shown_media(trial.media, folder),
            f"{trial.score:+.3f}",
            ("target" if label else "no target",),
            score=trial.score - threshold if label else threshold - trial.score,
            metric="distance to the threshold",
        )
        for trial, label in zip(trials, labels, strict=True)
    ]
    curve = section("Detection", det_figure([trial.score for trial in trials], labels))
    write_page(args, rows, {name: figures[name] for name in _SCORES}, sections=[curve])


def read_trials(path: str | Path) -> list[Trial]:
    """Trials of a JSON-lines file in its order; raises InputError with file and line for the first bad line."""
    trials, lines = list[Trial](), dict[str, int]()
    for number, record in read_jsonl(path):
        location = f"{path}:{number}"
        missing = [key for key in ("id", "score", "label") if not isinstance(record, dict) or key not in record]
        if missing:
            raise InputError(f"{location}: no {' and no '.join(missing)}; a line needs id, score and label")
        name = identifier(record["id"], location)
        if name in lines:
            raise InputError(f"{location}: id {name!r} is already used in line {lines[name]}")
        lines[name] = number
        trials.append(_trial(record, name, location))
    if not trials:
        raise InputError(f"{path}: no scores; a line is a JSON object with id, score and label")
    return trials


def _trial(record: Any, name: str, location: str) -> Trial:
    return Trial(location, _score(record["score"], location), _label(record["label"], location), name, media_in(record))


def _score(value: Any, location: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{location}: score must be a finite number, not {json.dumps(value)}")
    return float(value)


def _label(value: Any, location: str) -> bool | str:
    if not isinstance(value, str) and value not in (0, 1):  # true and false are 1 and 0
        raise InputError(f"{location}: label must be true or false, 1 or 0, or a word, not {json.dumps(value)}")
    return value if isinstance(value, str) else bool(value)


def _targets(trials: Sequence[Trial], positive: str | None, path: str) -> list[bool]:
    """For each trial True where it is a target; ``path`` is for messages. Raises InputError for unclear labels."""
    first: dict[bool | str, str] = {}  # label → file:line of its first occurrence
    for trial in trials:
        first.setdefault(trial.label, trial.location)
    words = [label for label in first if isinstance(label, str)]
    if len(words) < len(first) and (words or positive is not None):
        mixed = f"label {words[0]!r} ({first[words[0]]}) beside" if words else f"--positive {positive} beside"
        raise InputError(f"{path}: {mixed} labels that are true or false, 1 or 0: use one kind")
    if words and positive is None:
        raise InputError(f"{first[words[0]]}: label {words[0]!r}: which word is the target? Give --positive WORD")
    if words and positive not in words:
        raise InputError(f"--positive {positive}: no such label in {path}; its labels: {_listed(words)}")
    if len(words) > 2:
        raise InputError(f"{first[words[2]]}: label {words[2]!r} is a third word beside {_listed(words[:2])}")
    if len(first) < 2:
        raise InputError(f"{path}: all {len(trials)} labels are {json.dumps(next(iter(first)))}; both kinds are needed")
    return [trial.label == positive if words else bool(trial.label) for trial in trials]


def _listed(words: Sequence[str]) -> str:
    return " and ".join(map(repr, words))
