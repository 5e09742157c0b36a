"""Curves of a training: the columns of ``metrics.csv`` as line charts in SVG."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmprefix.reports.page import COLOURS, escape

Points = list[tuple[float, float]]
WIDTH, HEIGHT = 330, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 34
CHARTS: tuple[tuple[str, tuple[str, ...]], ...] = (  # title → columns that share its axes
    ("loss", ("train/loss", "val/loss")),
    ("CIDEr-D", ("val/cider_d", "val/cider_d_shuffled")),
    ("exact match", ("val/exact_match",)),
    ("equal error rate", ("val/eer",)),
    ("area under the ROC curve", ("val/auc",)),
    ("cosine of sentences", ("val/sbert_sim", "val/sbert_sim_shuffled")),
    ("learning rate", ("train/lr",)),
    ("gradient norm", ("train/grad_norm",)),
)
_MOST = 400  # points of a line that are drawn; of more, the lowest and highest of each piece


def read_metrics(file: Path) -> dict[str, Points]:
    """Points (step, value) of each column of a ``metrics.csv``; values that are no numbers are left out."""
    columns: dict[str, Points] = {}
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            step = _number(row.pop("step", None))
            row.pop("epoch", None)
            for name, text in row.items():
                value = _number(text) if text else None
                if step is not None and value is not None:
                    columns.setdefault(name, []).append((step, value))
    return columns


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def charts(columns: Mapping[str, Points]) -> str:
    """Figures of all charts whose columns hold two points or more."""
    figures = []
    for title, names in CHARTS:
        lines = {name: columns[name] for name in names if len(columns.get(name, [])) > 1}
        if lines:
            figures.append(chart(title, lines))
    return f'<div class="row">{"".join(figures)}</div>' if figures else ""


def chart(title: str, lines: Mapping[str, Points]) -> str:
    """Figure of ``lines`` (name → points) over steps; ``data-points`` of a line holds its points as numbers."""
    x0, x1 = _range(x for points in lines.values() for x, _ in points)
    y0, y1 = _range(y for points in lines.values() for _, y in points)
    body = [_axes((x0, x1), (y0, y1))]
    for number, (name, points) in enumerate(lines.items()):
        kept = thinned(points)
        path = " ".join(f"{_x(x, x0, x1):.1f},{_y(y, y0, y1):.1f}" for x, y in kept)
        data = " ".join(f"{x:g},{y:.6g}" for x, y in kept)
        colour = COLOURS[number % len(COLOURS)]
        label = escape(name)
        numbers = f'data-name="{label}" data-points="{data}"'
        body.append(f'<polyline class="line" stroke="{colour}" points="{path}" {numbers}/>')
        body.append(f'<text x="{LEFT + 6 + 130 * number}" y="{HEIGHT - 4}" style="fill:{colour}">{label}</text>')
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{escape(title)} by step">'
    return f"<figure>{picture}{''.join(body)}</svg><figcaption>{escape(title)}</figcaption></figure>"


def thinned(points: Points) -> Points:
    """``points`` (N), or of more than can be seen the lowest and the highest of each of equal pieces, and the ends."""
    if len(points) <= _MOST:
        return points
    size = math.ceil(len(points) / (_MOST // 2))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        piece = range(start, min(start + size, len(points)))
        kept |= {min(piece, key=lambda at: points[at][1]), max(piece, key=lambda at: points[at][1])}
    return [points[at] for at in sorted(kept)]


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Lowest and highest value; a little around one that is alone."""
    listed = list(values)
    low, high = min(listed), max(listed)
    return (low, high) if high > low else (low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9)


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)


def _axes(xs: tuple[float, float], ys: tuple[float, float]) -> str:
    """Frame, three lines across and their figures, first and last step."""
    parts = []
    for value in (ys[0], (ys[0] + ys[1]) / 2, ys[1]):
        y = _y(value, *ys)
        parts.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_figure(value)}</text>')
    ends: Sequence[tuple[float, str]] = ((xs[0], "start"), (xs[1], "end"))
    for value, anchor in ends:
        x, y = _x(value, *xs), HEIGHT - BOTTOM + 14
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{value:g}</text>')
    return "".join(parts)


def _figure(value: float) -> str:
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.3g}"
