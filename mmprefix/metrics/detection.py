"""Detection of targets by a score: equal error rate, area under the ROC curve, and the DET curve.

DET curve: Martin et al. 1997 (https://www.isca-archive.org/eurospeech_1997/martin97b_eurospeech.html). A score at or
above the threshold is accepted. Each distinct score serves as threshold, from high to low, and gives one point: the
rate of false alarms (accepted non-targets) and the rate of misses (rejected targets). The first point, at infinity,
accepts nothing. Equal scores enter together, so the order of the items does not matter.
"""

# pyright: reportUnnecessaryIsInstance=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmprefix.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class DetCurve(NamedTuple):
    """Rates of false alarms (K+1, rising from 0 to 1) and of misses (K+1, falling to 0) at falling thresholds (K+1).

    K is the number of distinct scores; the first threshold is infinity.
    """

    false_alarm: Floats
    miss: Floats
    threshold: Floats


def det_curve(scores: ArrayLike, labels: ArrayLike) -> DetCurve:
    """DET curve: one point per distinct threshold. Arguments and errors as for ``detection``."""
    hits, alarms, thresholds = _accepted(scores, labels)
    return DetCurve(alarms / alarms[-1], (hits[-1] - hits) / hits[-1], thresholds)


def equal_error_rate(curve: DetCurve) -> tuple[float, float]:
    """Equal error rate (EER) and its threshold: where lines between neighbouring points cross the diagonal.

    The threshold is interpolated in the same way; if a neighbour is infinite, it is the finite one. Between two points
    no threshold has exactly this rate: the data give the points only.
    """
    gap = curve.miss - curve.false_alarm  # falls strictly from 1 to -1
    after = int(np.argmax(gap <= 0))
    part = gap[after - 1] / (gap[after - 1] - gap[after])
    rate = curve.false_alarm[after - 1] + part * (curve.false_alarm[after] - curve.false_alarm[after - 1])
    high, low = curve.threshold[after - 1 : after + 1].tolist()
    if part == 1 or high == np.inf:
        return float(rate), low
    return float(rate), high if low == -np.inf else float(high + part * (low - high))


def detection(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Detection metrics of scores (N) against labels (N): 1 or true is a target; a higher score means target.

    Returns:
        eer: the equal error rate, by linear interpolation on the DET curve; threshold: where it is reached.
        auc: the area under the ROC curve, the chance that a target scores above a non-target; a tie counts half.
        targets, nontargets: their numbers.

    Raises:
        InputError: another label, a score that is no number, no item, only targets, or no target.
    """
    hits, alarms, _ = _accepted(scores, labels)
    rate, threshold = equal_error_rate(det_curve(scores, labels))
    targets, nontargets = int(hits[-1]), int(alarms[-1])
    pairs = int(np.sum((hits[1:] + hits[:-1]) * np.diff(alarms))) / 2  # pairs in which the target scores higher
    auc = pairs / (targets * nontargets)
    return {"eer": rate, "threshold": threshold, "auc": auc, "targets": targets, "nontargets": nontargets}


def _accepted(scores: ArrayLike, labels: ArrayLike) -> tuple[Ints, Ints, Floats]:
    """Numbers of accepted targets and non-targets (K+1 each) at falling thresholds (K+1)."""
    values, targets = _checked(scores, labels)
    order = np.argsort(-values, kind="stable")
    values, targets = values[order], targets[order]
    last = np.append(values[1:] != values[:-1], True)  # the last of each group of equal scores
    hits, alarms = np.cumsum(targets)[last], np.cumsum(~targets)[last]
    return np.append(0, hits), np.append(0, alarms), np.append(np.inf, values[last])


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Validated scores as float64 (N) and labels as bool (N)."""
    try:
        values, marks = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise InputError(f"scores and labels must be two lists of numbers ({error})") from None
    if values.ndim != 1 or marks.shape != values.shape:
        raise InputError(f"scores {values.shape} and labels {marks.shape} must be two lists of one length")
    if not values.size:
        raise InputError("no scores: there is nothing to score")
    if np.isnan(values).any():
        raise InputError(f"item {int(np.argmax(np.isnan(values)))}: the score is not a number (NaN)")
    if marks.dtype.kind not in "biuf" or not np.isin(marks, (0, 1)).all():
        raise InputError("labels must be 1 or 0, true or false: 1 for a target")
    targets = marks.astype(bool)
    if targets.all() or not targets.any():
        raise InputError(f"all {targets.size} labels are {int(targets[0])}: both targets and non-targets are needed")
    return values, targets
