"""Report of an evaluation: one page of HTML of its figures, and the worst and best predictions with their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmprefix.atomic import write_atomically
from mmprefix.reports.gallery import Budget, gallery
from mmprefix.reports.page import document, escape, section, table
from mmprefix.reports.rows import ScoredText
from mmprefix.reports.run_report import ReportOptions


def write_evaluation(
    title: str,
    rows: Sequence[ScoredText],
    figures: Mapping[str, float],
    out: Path,
    *,
    options: ReportOptions | None = None,
    notes: Sequence[str] = (),
    sections: Sequence[str] = (),
) -> None:
    """Write the page of ``rows``, which are scored, and of the ``figures`` over all of them, to ``out``.

    ``notes``: sentences that a reader of the figures should know; ``sections``: HTML behind the figures.
    Raises InputError where the file cannot be written.
    """
    page = evaluation_page(title, rows, figures, options=options or ReportOptions(), notes=notes, sections=sections)
    write_atomically(out, lambda file: file.write_text(page, encoding="utf-8"))


def evaluation_page(
    title: str,
    rows: Sequence[ScoredText],
    figures: Mapping[str, float],
    *,
    options: ReportOptions,
    notes: Sequence[str] = (),
    sections: Sequence[str] = (),
) -> str:
    """Page of an evaluation: figures, notes, ``sections``, then worst, best and other rows of each kind of input."""
    listed = "".join(f"<li>{escape(text)}</li>" for text in notes)
    shown = table(["", *figures], [["all inputs", *(f"{value:.4f}" for value in figures.values())]]) if figures else ""
    parts = [
        section("Figures", shown),
        section("Notes", f'<ul class="warnings">{listed}</ul>' if listed else ""),
        *sections,
    ]
    budget = Budget(options.megabytes * 1e6 - len("".join(parts).encode()) - 8_000)
    groups = list(dict.fromkeys(row.group for row in rows))
    for group in groups:
        name = f"Inputs: {group}" if group and len(groups) > 1 else "Inputs"
        own = [row for row in rows if row.group == group]
        parts.append(section(name, gallery(own, options.cards, budget)))
    left = f"; {budget.left_out} cards were left out, for a page of {options.megabytes:g} MB" if budget.left_out else ""
    return document(title, f"{len(rows)} predictions{left}", parts)
