"""Report of a run: one page of HTML of its metrics, captions and warnings, from the files in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprefix.atomic import write_atomically
from mmprefix.errors import InputError
from mmprefix.reports.confusion import confusion_table
from mmprefix.reports.curves import Points, charts, read_metrics
from mmprefix.reports.det import det_figure
from mmprefix.reports.gallery import Budget, gallery
from mmprefix.reports.page import document, escape, section, table
from mmprefix.reports.rows import ScoredText, answers_by_question, detections, read_rows
from mmprefix.trust.plain_yaml import read_yaml

FIGURES = ("loss", "shuffle_gap", "cider_d", "cider_d_shuffled", "bleu_4", "rouge_l", "exact_match", "distinct")
FIGURES += ("eer", "auc", "sbert_sim", "sbert_sim_shuffled")
TITLES = {"val": "last validation", "test": "test"}
_WARNING = re.compile(r"^\S+ \S+ WARNING mmprefix[\w.]*: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class ReportOptions:
    """Size of a report: megabytes of the page, and cards under each title of a gallery."""

    megabytes: float = 5.0
    cards: int = 8

    def __post_init__(self) -> None:
        if not 0.1 <= self.megabytes <= 500:
            raise InputError(f"report size {self.megabytes:g} MB: give 0.1 to 500")


@dataclass(frozen=True)
class RunFiles:
    """Files of a run: columns of metrics, newest captions by stage, log, and the word for what is to be detected."""

    folder: Path
    metrics: dict[str, Points]
    captions: dict[str, Path]
    warnings: list[str]
    target: str | None


def run_files(folder: Path) -> RunFiles:
    """Files of the run in ``folder``. Raises InputError where there are neither metrics nor captions."""
    tables = sorted(folder.glob("logs/version_*/metrics.csv"), key=_written)
    metrics: dict[str, Points] = {}
    for file in tables:  # a run that goes on, or begins anew, replaces what lies at its steps and behind them
        for name, points in read_metrics(file).items():
            before = [point for point in metrics.get(name, []) if point[0] < points[0][0]]
            metrics[name] = [*before, *points]
    captions: dict[str, Path] = {}
    written = [*folder.glob("logs/version_*/captions/*.jsonl"), *folder.glob("captions/*.jsonl")]
    for file in sorted(written, key=_written):
        captions[file.name.partition("-step")[0]] = file
    if not metrics and not captions:
        raise InputError(f"{folder}: holds no run (no logs/version_*/metrics.csv, no captions)")
    log = folder / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return RunFiles(folder, metrics, captions, list(dict.fromkeys(_WARNING.findall(text))), _target(folder))


def write_report(files: RunFiles, out: Path, options: ReportOptions, signs: Sequence[str] = ()) -> None:
    """Write the page of a run to ``out``. ``signs``: sentences that warn, besides those of its log."""
    rows = {stage: read_rows(file, files.target) for stage, file in files.captions.items()}
    page = run_page(files, rows, options, signs)
    write_atomically(out, lambda file: file.write_text(page, encoding="utf-8"))


def run_page(
    files: RunFiles, rows: Mapping[str, Sequence[ScoredText]], options: ReportOptions, signs: Sequence[str] = ()
) -> str:
    """Page of a run: figures, warnings, curves, then for each stage the DET curve, confusion and gallery."""
    warnings = list(dict.fromkeys([*signs, *files.warnings]))
    listed = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    sections = [
        section("Figures", _figures(files.metrics)),
        section("Warning signs", f'<ul class="warnings">{listed}</ul>' if listed else ""),
        section("Training", charts(files.metrics)),
    ]
    budget = Budget(options.megabytes * 1e6 - len("".join(sections).encode()) - 8_000)
    for stage in sorted(rows, key=lambda name: name != "test"):  # the test first
        sections += stage_sections(TITLES.get(stage, stage), rows[stage], files.target, options=options, budget=budget)
    counts = ", ".join(f"{len(listed)} rows of the {TITLES.get(stage, stage)}" for stage, listed in rows.items())
    left = f"; {budget.left_out} cards were left out, for a page of {options.megabytes:g} MB" if budget.left_out else ""
    return document(files.folder.resolve().name, f"{counts or 'no captions'}{left}", sections)


def stage_sections(
    title: str, rows: Sequence[ScoredText], target: str | None, *, options: ReportOptions, budget: Budget
) -> list[str]:
    """Sections of the rows of one stage, each where its rows have what it needs."""
    sections = []
    if target is not None:
        odds, labels = detections(rows, target)
        if len(set(labels)) == 2:
            sections.append(section(f"Detection, {title}", det_figure(odds, labels)))
    tables = [confusion_table(*answers, question) for question, answers in answers_by_question(rows).items()]
    kept = [text for text in tables if text and budget.takes(text)]
    sections.append(section(f"Confusion, {title}", *kept))
    groups = list(dict.fromkeys(row.group for row in rows))
    for group in groups:
        own = [row for row in rows if row.group == group]
        name = f"Inputs, {title}" + (f": {group}" if group and len(groups) > 1 else "")
        sections.append(section(name, gallery(own, options.cards, budget)))
    return sections


def _figures(metrics: Mapping[str, Points]) -> str:
    """Table of the last figures of validation and test, of all rows and of each kind of input."""
    last = {name: points[-1][1] for name, points in metrics.items()}
    kinds = dict.fromkeys(name.rpartition("/")[0] for name in last if name.startswith(("val/", "test/")))
    shown = [name for name in FIGURES if any(f"{kind}/{name}" in last for kind in kinds)]
    rows = []
    for kind in sorted(kinds, key=lambda kind: (not kind.startswith("test"), kind)):
        stage, _, group = kind.partition("/")
        cells = [f"{last[f'{kind}/{name}']:.3f}" if f"{kind}/{name}" in last else "" for name in shown]
        rows.append([TITLES[stage] + (f": {group}" if group else ""), *cells])
    note = '<p class="soft">shuffled: when each input is given another\'s caption; shuffle_gap: the loss that another '
    note += "input's prefix adds. A model that ignores its input gains nothing.</p>"
    return table(["", *shown], rows) + note if rows else ""


def _target(folder: Path) -> str | None:
    """Word for what is to be detected, by the run's recipe; None where there is none."""
    for file in sorted(folder.glob("logs/version_*/config.yaml"), key=_written, reverse=True):
        try:
            recipe: Any = read_yaml(file)
        except (InputError, OSError):
            continue
        answers = recipe.get("model", {}).get("answers") if isinstance(recipe, dict) else None
        return str(answers[0]) if answers else None
    return None


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns
