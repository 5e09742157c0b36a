"""Rows of a report: what a validation, a test or a file of predictions holds of each input, and a score for each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmprefix.metrics.caption import caption
from mmprefix.metrics.caveats import undefined_metrics

CIDER, EXACT, MARGIN = "CIDEr-D", "exact match", "log odds towards what is right"
_QUESTION = re.compile(r"(.*) \[(\d+)\] (.*)", re.DOTALL)  # id of a question's row: NAME [NUMBER] QUESTION


@dataclass(frozen=True)
class ScoredText:
    """Text that was written for one input, beside its references.

    ``media``: file of the input, or "". ``log_odds``: of what is to be detected, None where nothing is. ``score``:
    higher is better; ``metric`` names it.
    """

    id: str
    group: str
    media: str
    prediction: str
    references: tuple[str, ...]
    log_odds: float | None = None
    score: float | None = None
    metric: str = ""

    @property
    def question(self) -> tuple[int, str] | None:
        """Number and words of the question that this row answers, where it answers one."""
        match = _QUESTION.fullmatch(self.id)
        return (int(match[2]), match[3]) if match else None


def read_rows(file: Path, target: str | None = None) -> list[ScoredText]:
    """Rows of the captions that a run has written, scored; ``target``: word for what is to be detected.

    Lines that hold no prediction are left out.
    """
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    return scored([_row(line) for line in lines if isinstance(line, dict) and "prediction" in line], target)


def _row(line: Mapping[str, Any]) -> ScoredText:
    return ScoredText(
        str(line.get("id", "")),
        str(line.get("group", "")),
        str(line.get("media", "")),
        str(line["prediction"]),
        tuple(map(str, line.get("references", []))),
        line.get("log_odds"),
    )


def scored(rows: list[ScoredText], target: str | None = None, tokenizer: str = "ptb") -> list[ScoredText]:
    """``rows`` with a score: the margin where something is detected, exact match of answers, CIDEr-D of captions.

    ``tokenizer``: of the captions, as ``mmprefix.metrics.caption`` names them.
    """
    if target is not None and any(row.log_odds is not None for row in rows):
        return [_with_margin(row, target) for row in rows]
    with_references = [row for row in rows if row.references]
    if not with_references:
        return rows
    undefined = undefined_metrics([row.references for row in with_references])
    answers = all(row.question for row in with_references) or "cider_d" in undefined
    name, metric = ("exact_match", EXACT) if answers else ("cider_d", CIDER)
    predictions, references = [r.prediction for r in with_references], [r.references for r in with_references]
    items = caption(predictions, references, tokenizer, per_item=True)
    scores = iter(items["items"][name])
    return [replace(row, score=next(scores), metric=metric) if row.references else row for row in rows]


def _with_margin(row: ScoredText, target: str) -> ScoredText:
    if row.log_odds is None:
        return row
    return replace(row, score=row.log_odds if target in row.references else -row.log_odds, metric=MARGIN)


def detections(rows: Iterable[ScoredText], target: str) -> tuple[list[float], list[bool]]:
    """Log odds and labels of the rows that have both."""
    pairs = [(row.log_odds, target in row.references) for row in rows if row.log_odds is not None and row.references]
    return [odds for odds, _ in pairs], [label for _, label in pairs]


def answers_by_question(rows: Iterable[ScoredText]) -> dict[str, tuple[list[str], list[str]]]:
    """Gold answers and answers of questions with few answers, such as that about the intent.

    Questions are told apart by their number, as their wording may be drawn; a question belongs here when it has 2 to
    40 gold answers, each given twice in the mean.
    """
    asked: dict[int, list[ScoredText]] = {}
    for row in rows:
        if row.question and len(row.references) == 1:
            asked.setdefault(row.question[0], []).append(row)
    tables: dict[str, tuple[list[str], list[str]]] = {}
    for number, answered in sorted(asked.items()):
        labels = {row.references[0] for row in answered}
        if 2 <= len(labels) <= 40 and len(answered) >= 2 * len(labels):
            first = answered[0].question
            words = first[1] if first else ""
            tables[f"question {number}, such as “{words}”"] = (
                [row.references[0] for row in answered],
                [row.prediction for row in answered],
            )
    return tables
