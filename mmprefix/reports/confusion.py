"""Confusion of labels: how often each gold label was answered by which, as a table with shades."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mmprefix.reports.page import escape

MOST = 40  # labels of a table that can be read


def confusion(gold: Sequence[str], answers: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Labels in order (L) and counts (L x L): rows are gold labels, columns are answers."""
    labels = sorted({*gold, *answers})
    counts = Counter(zip(gold, answers, strict=True))
    return labels, [[counts[row, column] for column in labels] for row in labels]


def confusion_table(gold: Sequence[str], answers: Sequence[str], title: str = "") -> str:
    """Table of the confusion. Answers that are no gold label share the column "other"; empty for over ``MOST``."""
    known = set(gold)
    shown = [answer if answer in known else "other" for answer in answers]
    labels, counts = confusion(gold, shown)
    if len(known) > MOST:
        return ""
    columns = [label for label in labels if label in known] + (["other"] if "other" not in known else [])
    columns = [column for column in columns if column in labels]
    at = {label: number for number, label in enumerate(labels)}
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = []
    for label in (label for label in labels if label in known):
        total = sum(counts[at[label]])
        cells = "".join(_cell(counts[at[label]][at[column]], total, right=column == label) for column in columns)
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    right = sum(a == b for a, b in zip(gold, answers, strict=True))
    caption = f"{title + ': ' if title else ''}{right} of {len(gold)} right. Rows: what was meant; columns: the answer."
    body = f'<table class="confusion"><tr><td></td>{head}</tr>{"".join(rows)}</table>'
    return f'<p class="soft">{escape(caption)}</p><div class="scroll">{body}</div>'


def _cell(count: int, total: int, *, right: bool) -> str:
    if not count:
        return "<td></td>"
    colour = "23,114,69" if right else "179,52,31"
    return f'<td style="background:rgba({colour},{0.12 + 0.6 * count / total:.2f})">{count}</td>'
