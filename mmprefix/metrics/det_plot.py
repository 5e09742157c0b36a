"""Plot of a DET curve; needs matplotlib, the extra ``mmprefix[plots]``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import NormalDist

import numpy as np

from mmprefix.atomic import write_atomically
from mmprefix.errors import InputError
from mmprefix.metrics.detection import DetCurve, equal_error_rate

FORMATS = (".png", ".svg", ".pdf")
_TICKS = (0.0001, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


def check(path: Path) -> None:
    """Raise InputError if ``draw`` would fail: matplotlib is missing, or the suffix names no format."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--det {path}: end the name in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    try:
        import matplotlib.figure as _  # noqa: F401
    except ImportError:
        raise InputError(f"--det {path}: matplotlib is missing; pip install 'mmprefix[plots]'") from None


def draw(curve: DetCurve, path: Path) -> None:
    """Write the plot to ``path``: both axes in normal deviates, the curve's points joined by lines, the EER marked.

    A rate of 0 or 1 is infinitely far on such an axis and is drawn at the edge. Raises InputError as ``check`` does,
    and if the file cannot be written.
    """
    check(path)
    from matplotlib.figure import Figure

    rate, threshold = equal_error_rate(curve)
    low, high = _limits(curve, rate)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(title=f"EER {100 * rate:.3g} % at threshold {threshold:.4g}", aspect="equal")
    axes.plot(_deviate(curve.false_alarm, low), _deviate(curve.miss, low), zorder=3)
    axes.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
    point = _deviate([rate], low)
    axes.plot(point, point, "o", color="black", clip_on=False, zorder=4)
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    names, limits = [f"{100 * tick:g}" for tick in ticks], _deviate([low, high], low)
    axes.set(xlabel="false alarms in %", xlim=limits, ylabel="misses in %", ylim=limits)
    axes.set_xticks(_deviate(ticks, low), names, fontsize="small", rotation=45)
    axes.set_yticks(_deviate(ticks, low), names, fontsize="small")
    axes.grid(color="0.9")
    write_atomically(path, lambda fresh: figure.savefig(fresh, format=path.suffix[1:].lower(), dpi=150))


def _limits(curve: DetCurve, rate: float) -> tuple[float, float]:
    """Lowest and highest rate of the axes: half the smallest rate above 0, and 0.5 (more if there are many errors)."""
    rates = np.concatenate([curve.false_alarm, curve.miss])
    low = float(np.clip(rates[rates > 0].min() / 2, 0.0001, 0.05))
    return low, 0.5 if rate < 0.25 else 1 - low


def _deviate(rates: Iterable[float], low: float) -> list[float]:
    """Standard normal quantiles of ``rates``, clipped to ``low`` .. 1 - ``low``."""
    return [NormalDist().inv_cdf(min(max(float(rate), low), 1 - low)) for rate in rates]
