"""DET curve as SVG: misses over false alarms, both axes in normal deviates (Martin et al. 1997)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from mmprefix.metrics.detection import DetCurve, det_curve, detection
from mmprefix.reports.page import escape

SIZE, LEFT, TOP = 330, 48, 10
_TICKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
_INVERSE = NormalDist().inv_cdf


def det_figure(scores: Sequence[float], labels: Sequence[bool], title: str = "") -> str:
    """Figure of the curve with its EER; ``data-points`` holds its points. Raises InputError for one class."""
    curve, figures = det_curve(scores, labels), detection(scores, labels)
    low = _lowest(curve)
    high = 0.5 if figures["eer"] < 0.25 else 1 - low
    first, whole = _INVERSE(low), _INVERSE(high) - _INVERSE(low)
    place = lambda rate: (_INVERSE(min(max(float(rate), low), high)) - first) / whole  # noqa: E731
    length = SIZE - LEFT - TOP
    x = lambda rate: LEFT + place(rate) * length  # noqa: E731
    y = lambda rate: SIZE - LEFT - place(rate) * length  # noqa: E731
    parts = []
    for tick in (tick for tick in _TICKS if low <= tick <= high):
        parts.append(f'<path class="axis" d="M{x(tick):.1f} {TOP}V{SIZE - LEFT}M{LEFT} {y(tick):.1f}H{SIZE - TOP}"/>')
        name = f"{100 * tick:g}"
        parts.append(f'<text x="{x(tick):.1f}" y="{SIZE - LEFT + 14}" text-anchor="middle">{name}</text>')
        parts.append(f'<text x="{LEFT - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{name}</text>')
    pairs = list(zip(curve.false_alarm.tolist(), curve.miss.tolist(), strict=True))
    path = " ".join(f"{x(alarm):.1f},{y(miss):.1f}" for alarm, miss in pairs)
    data = " ".join(f"{alarm:.6g},{miss:.6g}" for alarm, miss in pairs)
    parts.append(f'<path class="axis" d="M{x(low):.1f} {y(low):.1f}L{x(high):.1f} {y(high):.1f}"/>')
    parts.append(f'<polyline class="line" stroke="#2f6fdd" points="{path}" data-name="det" data-points="{data}"/>')
    parts.append(f'<circle cx="{x(figures["eer"]):.1f}" cy="{y(figures["eer"]):.1f}" r="4" fill="#d9822b"/>')
    parts.append(f'<text x="{SIZE / 2 + 20}" y="{SIZE - 14}" text-anchor="middle">false alarms in %</text>')
    parts.append(f'<text transform="translate(13 {SIZE / 2 - 20}) rotate(-90)" text-anchor="middle">misses in %</text>')
    caption = f"EER {100 * figures['eer']:.3g} % at {figures['threshold']:.4g}, AUC {figures['auc']:.4f}"
    counts = f"{figures['targets']} targets, {figures['nontargets']} others"
    head = f'<svg viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" role="img" aria-label="DET curve">'
    note = " · ".join(filter(None, (title, caption, counts)))
    return f"<figure>{head}{''.join(parts)}</svg><figcaption>{escape(note)}</figcaption></figure>"


def _lowest(curve: DetCurve) -> float:
    """Lowest rate of the axes: half the smallest above 0, within 0.01 % and 5 %."""
    rates = [rate for rate in (*curve.false_alarm.tolist(), *curve.miss.tolist()) if rate > 0]
    return min(max(min(rates) / 2, 0.0001), 0.05)
