"""``mmprefix evaluate --task slu``: intents and slots against what was meant.

A line of the file is ours, ``{"id": ..., "intent": ..., "slots": {type: value or list of values}}``, or SLURP's. The
gold is each line's own ``reference``, or a file of such records: a manifest of ours, or SLURP's test set.
``mmprefix.metrics.slurp_records`` has both forms, ``mmprefix.metrics.slu`` the measures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmprefix.cli.jsonl import format_table, read_jsonl
from mmprefix.errors import InputError
from mmprefix.metrics.slu import INTENTS, NAMES, score
from mmprefix.metrics.slurp_records import KEYS, Frame, read_frame

LINE = (
    "lines of id, intent, slots (type: value or list of values) and, without --gold, reference (intent, slots); "
    "or as SLURP has them: file or slurp_id, scenario, action, entities"
)
_COLUMNS = ("precision", "recall", "f1")
_COUNTS = ("matched_by", "gold", "scored", "missing", "foreign", "unknown_slot_types", "left_out")


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """The options of this task."""
    parser.add_argument("--gold", metavar="FILE", help="what was meant, as JSON lines: a manifest, or SLURP's test set")
    parser.add_argument("--split", metavar="NAME", help="only the rows of --gold with this split")
    parser.add_argument(
        "--intent-field",
        metavar="FIELD",
        help="where the intent is in --gold; several are joined by _: scenario+action (default: intent)",
    )
    parser.add_argument(
        "--per-label", action="store_true", help="also each label's counts and figures, and their means"
    )
    parser.add_argument("--ignore-case", action="store_true", help="compare slot values in lower case")
    parser.add_argument(
        "--count-missing", action="store_true", help="score what has no prediction as a prediction of nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Print the scores; 0. Raises ``InputError`` that names file and line."""
    for option, value in (("--split", args.split), ("--intent-field", args.intent_field)):
        if value and not args.gold:
            raise InputError(f"{option} {value} says how to read --gold FILE, which is not given")
    lines = [(f"{args.predictions}:{number}", record) for number, record in read_jsonl(args.predictions)]
    if not lines:
        raise InputError(f"{args.predictions}: no predictions; a line is a JSON object with id, intent, slots")
    predictions = [read_frame(record, place) for place, record in lines]
    if args.gold:
        gold = read_gold(args.gold, args.split, args.intent_field)
    else:
        gold = [_reference(record, place) for place, record in lines]
    options = {"per_label": args.per_label, "count_missing": args.count_missing, "ignore_case": args.ignore_case}
    found = score(predictions, gold, **options)
    if args.json:
        sys.stdout.write(json.dumps(_report(found), ensure_ascii=False) + "\n")
        return 0
    ours = any("entities" not in record for _, record in lines)
    sys.stdout.write(format_table(_said(found, args.count_missing)) + format_table(_figures(found, ours)))
    for name, rows in found.get("tables", {}).items():
        sys.stdout.write("\n" + format_table(_labels(name, rows, found)))
    return 0


def read_gold(path: str, split: str | None = None, intent_field: str | None = None) -> list[Frame]:
    """The gold frames of a JSON-lines file, those of one split; raises ``InputError`` with file and line.

    ``intent_field`` names the field of the intent, or several with + between them, whose values are joined with _.
    """
    lines = [(f"{path}:{number}", record) for number, record in read_jsonl(path)]
    if split is not None:
        lines = [(place, row) for place, row in lines if not isinstance(row, Mapping) or row.get("split") == split]
    if not lines:
        raise InputError(f"{path}: " + ("no records" if split is None else f"no row with --split {split}"))
    if intent_field is None:
        return [read_frame(record, place, gold=True) for place, record in lines]
    return [_named(record, place, intent_field.split("+")) for place, record in lines]


def _named(record: Any, place: str, fields: Sequence[str]) -> Frame:
    """The gold frame whose intent is the values of ``fields``."""
    values = [record.get(field) if isinstance(record, Mapping) else None for field in fields]
    for field, value in zip(fields, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InputError(f"{place}: --intent-field {'+'.join(fields)}: no text in {field!r}")
    intent = "_".join(map(str, values))
    return replace(read_frame({**record, "intent": intent}, place, gold=True), intent=intent)


def _reference(record: Mapping[str, Any], place: str) -> Frame:
    """The gold that stands in the line itself."""
    reference = record.get("reference")
    if not isinstance(reference, Mapping):
        raise InputError(f"{place}: no reference (an object with intent and slots); add it, or give --gold FILE")
    keys = {key: record[key] for key in KEYS if key in record}
    return read_frame({**reference, **keys}, f"{place}: reference", gold=True)


def _report(found: Mapping[str, Any]) -> dict[str, Any]:
    """Everything for ``--json``; figures of the whole under scores, as the other tasks have them."""
    report = {"task": "slu", "items": found["scored"]} | {name: found[name] for name in _COUNTS}
    report["scores"] = {name: value for name, value in found.items() if isinstance(value, float)}
    return report | {name: value for name, value in found.items() if name not in report | report["scores"]}


def _said(found: Mapping[str, Any], counted: bool) -> list[tuple[str, str]]:
    """How many were scored, and all that was not."""
    missing = "scored as predictions of nothing" if counted else "not scored; --count-missing scores them"
    unknown = ", ".join(f"{kind} {count}" for kind, count in found["unknown_slot_types"].items())
    rows = [
        ("scored", f"{found['scored']} of {found['gold']}, matched by {found['matched_by']}"),
        ("missing", f"{found['missing']}" + (f" without a prediction, {missing}" if found["missing"] else "")),
        ("foreign", f"{found['foreign']}" + (" without gold, ignored" if found["foreign"] else "")),
        ("unknown slot types", f"{unknown} (in no gold: false positives)" if unknown else "none"),
    ]
    left_out = " and ".join(found["left_out"])
    return rows + ([("left out", f"{left_out}: not in all of the gold")] if left_out else [])


def _figures(found: Mapping[str, Any], ours: bool) -> list[Sequence[str]]:
    """Precision, recall and F1 of each measure; of records of our form also how often intent and slots are right."""
    slots = found["per_slot_accuracy"] or found["unknown_slot_types"]  # with none on either side there is no figure
    names = [name for name in NAMES if name not in found["left_out"] and (slots or name in INTENTS)]
    rows: list[Sequence[str]] = [("measure", *_COLUMNS)] if names else []
    rows += [(name, *(f"{found[f'{name}_{column}']:.4f}" for column in _COLUMNS)) for name in names]
    if ours:
        names = ("intent_accuracy", *(["slot_accuracy"] if slots else []), "frame_accuracy")
        rows += [(name, f"{found[name]:.4f}") for name in names if name in found]
        rows += [(f"slot {kind}", f"{value:.4f}") for kind, value in found["per_slot_accuracy"].items()]
    return rows


def _labels(name: str, rows: Mapping[str, Mapping[str, float]], found: Mapping[str, Any]) -> list[Sequence[str]]:
    """The counts and figures of each label of one measure, after those of all and their means."""
    every = {"(micro)": found["micro"][name], "(macro)": found["macro"][name], **rows}
    lines: list[Sequence[str]] = [(name, *_COLUMNS, "tp", "fp", "fn")]
    return lines + [(label, *(f"{value:.4f}" for value in row.values())) for label, row in every.items()]
