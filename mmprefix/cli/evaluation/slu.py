"""``mmprefix evaluate --task slu``: predicted intents and slots against gold ones.

A line of the file is ``{"id": ..., "intent": ..., "slots": {type: value or list of values}}``, or a record of SLURP.
The gold is each line's own ``reference``, or a file of such records: a manifest, or SLURP's test set.
``mmprefix.metrics.slurp_records`` reads both forms, ``mmprefix.metrics.slu`` computes the metrics.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmprefix.cli.evaluation.html_page import media_in, shown_media, write_page
from mmprefix.cli.evaluation.jsonl import format_table, read_jsonl
from mmprefix.errors import InputError
from mmprefix.metrics.slu import INTENTS, NAMES, score
from mmprefix.metrics.slurp_records import KEYS, Frame, match_frames, read_frame

LINE = (
    "lines of id, intent, slots (type: value or list of values) and, without --gold, reference (intent, slots); "
    "or as SLURP has them: file or slurp_id, scenario, action, entities; for --html also file or audio (the input)"
)
_COLUMNS = ("precision", "recall", "f1")
_SHOWN = ("intent_accuracy", "slot_accuracy", "frame_accuracy", "intent_f1", "span_f1", "slu_f1")  # figures of a page
_COUNTS = ("matched_by", "gold", "scored", "missing", "foreign", "unknown_slot_types", "left_out")


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options of this task to ``parser``."""
    parser.add_argument(
        "--gold", metavar="FILE", help="gold annotations as JSON lines: a manifest, or SLURP's test set"
    )
    parser.add_argument("--split", metavar="NAME", help="only the rows of --gold with this split")
    parser.add_argument(
        "--intent-field",
        metavar="FIELD",
        help="column of the intent in --gold; A+B joins two with _, such as scenario+action (default: intent)",
    )
    parser.add_argument(
        "--per-label", action="store_true", help="also print each label's counts and figures, and their means"
    )
    parser.add_argument("--ignore-case", action="store_true", help="compare slot values in lower case")
    parser.add_argument(
        "--count-missing", action="store_true", help="score gold without a prediction as an empty prediction"
    )


def run(args: argparse.Namespace) -> int:
    """Print the scores and return 0. Raises InputError that names file and line."""
    for option, value in (("--split", args.split), ("--intent-field", args.intent_field)):
        if value and not args.gold:
            raise InputError(f"{option} {value} applies to --gold FILE, which is missing")
    lines = [(f"{args.predictions}:{number}", record) for number, record in read_jsonl(args.predictions)]
    if not lines:
        raise InputError(f"{args.predictions}: no predictions; a line is a JSON object with id, intent, slots")
    predictions = [read_frame(record, location) for location, record in lines]
    if args.gold:
        gold = read_gold(args.gold, args.split, args.intent_field)
    else:
        gold = [_reference(record, location) for location, record in lines]
    options = {"per_label": args.per_label, "count_missing": args.count_missing, "ignore_case": args.ignore_case}
    result = score(predictions, gold, **options)
    if args.html:
        _write_page(args, [record for _, record in lines], (predictions, gold), result)
    if args.json:
        sys.stdout.write(json.dumps(_report(result), ensure_ascii=False) + "\n")
        return 0
    ours = any("entities" not in record for _, record in lines)
    sys.stdout.write(format_table(_matching(result, args.count_missing)) + format_table(_figures(result, ours)))
    for name, rows in result.get("tables", {}).items():
        sys.stdout.write("\n" + format_table(_labels(name, rows, result)))
    return 0


def _write_page(
    args: argparse.Namespace,
    records: Sequence[Mapping[str, Any]],
    frames: tuple[Sequence[Frame], Sequence[Frame]],
    result: Mapping[str, Any],
) -> None:
    """Write the page of ``--html``: the confusion of intents, and wrong and right frames with their inputs."""
    from mmprefix.reports.confusion import confusion_table
    from mmprefix.reports.page import section
    from mmprefix.reports.rows import ScoredText

    ours, gold = frames
    if args.ignore_case:
        ours, gold = [frame.lower() for frame in ours], [frame.lower() for frame in gold]
    media = {frame.location: media_in(record) for frame, record in zip(ours, records, strict=True)}
    _, predicted, expected = match_frames(ours, gold)
    pairs = [(name, predicted.get(name), right) for name, right in expected.items()]
    rows = [
        ScoredText(
            name,
            *shown_media(media.get(own.location, "") if own else "", Path(args.predictions).parent),
            _written(own) if own else "",
            (_written(right),),
            score=score([own], [right])["frame_accuracy"] if own else 0.0,
            metric="frame",
        )
        for name, own, right in pairs
        if own or args.count_missing
    ]
    named = [(right.name, own.name) for _, own, right in pairs if own and right.name]
    table = confusion_table([right for right, _ in named], [own or "none" for _, own in named], "intent")
    figures = {name: value for name, value in result.items() if isinstance(value, float) and name in _SHOWN}
    write_page(args, rows, figures, sections=[section("Confusion", table)])


def _written(frame: Frame) -> str:
    """Frame in one line: intent(slot=value; slot=value)."""
    return f"{frame.name or '(no intent)'}({'; '.join(f'{kind}={value}' for kind, value in frame.slots)})"


def read_gold(path: str, split: str | None = None, intent_field: str | None = None) -> list[Frame]:
    """Gold frames of a JSON-lines file (``split``: those of one split). Raises InputError with file and line.

    ``intent_field`` names the field of the intent, or several joined by +, whose values are joined with _.
    """
    lines = [(f"{path}:{number}", record) for number, record in read_jsonl(path)]
    if split is not None:
        lines = [
            (location, row) for location, row in lines if not isinstance(row, Mapping) or row.get("split") == split
        ]
    if not lines:
        raise InputError(f"{path}: " + ("no records" if split is None else f"no row with --split {split}"))
    if intent_field is None:
        return [read_frame(record, location, gold=True) for location, record in lines]
    return [_named(record, location, intent_field.split("+")) for location, record in lines]


def _named(record: Any, location: str, fields: Sequence[str]) -> Frame:
    """Gold frame of ``record``, whose intent is the values of ``fields`` joined with _."""
    values = [record.get(field) if isinstance(record, Mapping) else None for field in fields]
    for field, value in zip(fields, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InputError(f"{location}: --intent-field {'+'.join(fields)}: no text in {field!r}")
    intent = "_".join(map(str, values))
    return replace(read_frame({**record, "intent": intent}, location, gold=True), intent=intent)


def _reference(record: Mapping[str, Any], location: str) -> Frame:
    """Gold frame in the line itself."""
    reference = record.get("reference")
    if not isinstance(reference, Mapping):
        raise InputError(f"{location}: no reference (an object with intent and slots); add it, or give --gold FILE")
    keys = {key: record[key] for key in KEYS if key in record}
    return read_frame({**reference, **keys}, f"{location}: reference", gold=True)


def _report(result: Mapping[str, Any]) -> dict[str, Any]:
    """Everything for ``--json``; overall figures under "scores", as in the other tasks."""
    report = {"task": "slu", "items": result["scored"]} | {name: result[name] for name in _COUNTS}
    report["scores"] = {name: value for name, value in result.items() if isinstance(value, float)}
    return report | {name: value for name, value in result.items() if name not in report | report["scores"]}


def _matching(result: Mapping[str, Any], counted: bool) -> list[tuple[str, str]]:
    """Table rows: how many records were scored, and which were not."""
    missing = "scored as empty predictions" if counted else "not scored; --count-missing scores them"
    unknown = ", ".join(f"{kind} {count}" for kind, count in result["unknown_slot_types"].items())
    rows = [
        ("scored", f"{result['scored']} of {result['gold']}, matched by {result['matched_by']}"),
        ("missing", f"{result['missing']}" + (f" without a prediction, {missing}" if result["missing"] else "")),
        ("foreign", f"{result['foreign']}" + (" without gold, ignored" if result["foreign"] else "")),
        ("unknown slot types", f"{unknown} (not in the gold: false positives)" if unknown else "none"),
    ]
    left_out = " and ".join(result["left_out"])
    return rows + ([("left out", f"{left_out}: not in all of the gold")] if left_out else [])


def _figures(result: Mapping[str, Any], ours: bool) -> list[Sequence[str]]:
    """Table rows: precision, recall and F1 of each metric; for records of our form also the accuracies."""
    slots = (
        result["per_slot_accuracy"] or result["unknown_slot_types"]
    )  # without slots on either side there are no figures
    names = [name for name in NAMES if name not in result["left_out"] and (slots or name in INTENTS)]
    rows: list[Sequence[str]] = [("measure", *_COLUMNS)] if names else []
    rows += [(name, *(f"{result[f'{name}_{column}']:.4f}" for column in _COLUMNS)) for name in names]
    if ours:
        names = ("intent_accuracy", *(["slot_accuracy"] if slots else []), "frame_accuracy")
        rows += [(name, f"{result[name]:.4f}") for name in names if name in result]
        rows += [(f"slot {kind}", f"{value:.4f}") for kind, value in result["per_slot_accuracy"].items()]
    return rows


def _labels(name: str, rows: Mapping[str, Mapping[str, float]], result: Mapping[str, Any]) -> list[Sequence[str]]:
    """Table rows of one metric: figures and counts over all labels, the means, then each label."""
    every = {"(micro)": result["micro"][name], "(macro)": result["macro"][name], **rows}
    lines: list[Sequence[str]] = [(name, *_COLUMNS, "tp", "fp", "fn")]
    return lines + [(label, *(f"{value:.4f}" for value in row.values())) for label, row in every.items()]
