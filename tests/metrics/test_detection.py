"""EER, AUC and the DET curve against scikit-learn and by hand; the plot; scores that are refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from mmprefix.errors import InputError
from mmprefix.metrics import DetCurve, det_curve, detection
from mmprefix.metrics.det_plot import draw
from mmprefix.metrics.detection import equal_error_rate


def _cases(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random scores and labels with both classes; every second case has few distinct scores, so many ties."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(count):
        size = int(rng.integers(2, 80))
        labels = rng.permutation(np.arange(size) < rng.integers(1, size)).astype(int)
        scores = rng.normal(size=size) + rng.uniform(-1, 3) * labels
        cases.append((scores.round() if number % 2 else scores, labels))
    return cases


def test_the_curve_and_the_area_are_scikit_learns() -> None:
    for scores, labels in _cases(300):
        curve = det_curve(scores, labels)
        alarms, hits, thresholds = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
        np.testing.assert_allclose(curve.false_alarm, alarms, atol=1e-15)
        np.testing.assert_allclose(curve.miss, 1 - hits, atol=1e-12)
        np.testing.assert_array_equal(curve.threshold, thresholds)
        auc = sklearn_metrics.roc_auc_score(labels, scores)
        assert detection(scores, labels)["auc"] == pytest.approx(auc, abs=1e-12)


def test_the_curve_holds_all_points_of_scikit_learns_det_curve() -> None:
    """scikit-learn leaves out points at the ends, where one of the rates is constant."""
    for scores, labels in _cases(200):
        ours = det_curve(scores, labels)
        points = {tuple(point) for point in np.stack([ours.false_alarm, ours.miss], 1).round(9).tolist()}
        alarms, misses, _ = sklearn_metrics.det_curve(labels, scores)
        assert points >= {tuple(point) for point in np.stack([alarms, misses], 1).round(9).tolist()}


def test_the_equal_error_rate_is_where_lines_between_scikit_learns_points_cross() -> None:
    for scores, labels in _cases(300):
        alarms, hits, thresholds = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
        low, high, at = 0.0, len(alarms) - 1.0, np.arange(len(alarms))  # along the points, by halving
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if np.interp(middle, at, 1 - hits - alarms) > 0 else (low, middle)
        figures = detection(scores, labels)
        assert figures["eer"] == pytest.approx(np.interp(high, at, alarms), abs=1e-9)
        assert figures["eer"] == pytest.approx(np.interp(high, at, 1 - hits), abs=1e-9)
        if high > 1:  # the first threshold is infinite
            assert figures["threshold"] == pytest.approx(np.interp(high, at, thresholds), abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "labels", "eer", "threshold", "auc"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0, 0.8, 1),  # at the lowest target
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 1, 0.8, 0),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.5, 0.4, 0.75),  # on a point
        ([3, 2, 1, 0], [1, 0, 1, 0], 0.5, 2, 0.75),
        ([3, 2, 1, 0], [1, 0, 0, 0], 0, 3, 1),
        ([1, 1, 1], [1, 0, 0], 0.5, 1, 0.5),  # all equal: between nothing and everything
        ([5, 3, 1, 1, 0], [1, 0, 1, 0, 0], 0.4, 2.6, 0.75),  # between (1/3, 1/2) at 3 and (2/3, 0) at 1, a tie
    ],
)
def test_by_hand(scores: list, labels: list, eer: float, threshold: float, auc: float) -> None:
    figures = detection(scores, labels)
    assert figures["eer"] == pytest.approx(eer)
    assert figures["threshold"] == pytest.approx(threshold)
    assert figures["auc"] == pytest.approx(auc)
    assert (figures["targets"], figures["nontargets"]) == (sum(labels), len(labels) - sum(labels))


def test_neither_order_nor_scale_matter() -> None:
    scores, labels = _cases(2)[1]
    order = np.random.default_rng(1).permutation(len(scores))
    expected, scaled = detection(scores, labels), detection(3 * scores[order] - 2, labels[order].astype(bool))
    assert (scaled["eer"], scaled["auc"]) == (expected["eer"], expected["auc"])
    assert scaled["threshold"] == pytest.approx(3 * expected["threshold"] - 2)


def test_infinite_scores_have_a_finite_threshold_where_there_is_one() -> None:
    infinity = float("inf")
    assert detection([infinity, 1, -infinity], [1, 0, 0])["eer"] == 0
    assert detection([2, -infinity, -infinity], [0, 1, 0])["threshold"] == 2
    assert equal_error_rate(DetCurve(*map(np.array, ([0, 0, 1], [1, 0.5, 0], [infinity, 3, -infinity]))))[1] == 3


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "no scores"),
        ([1, 2], [1, 1], "all 2 labels are 1"),
        ([1, 2], [False, False], "all 2 labels are 0"),
        ([1, float("nan")], [1, 0], "item 1: the score is not a number"),
        ([1, 2], [1, 2], "labels must be 1 or 0"),
        ([1, 2], ["yes", "no"], "labels must be 1 or 0"),
        ([1, 2], [1, None], "labels must be 1 or 0"),
        ([1, 2, 3], [1, 0], "scores (3,) and labels (2,)"),
        ([[1, 2]], [[1, 0]], "scores (1, 2)"),
        (["a", "b"], [1, 0], "two lists of numbers"),
    ],
)
def test_unusable_scores_are_refused(scores: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        detection(scores, labels)
    assert message in str(error.value)


# ------------------------------------------------------------------------------------------------------- the picture


def _curve(distance: float) -> DetCurve:
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 2
    return det_curve(rng.normal(size=2000) + distance * labels, labels)


def test_the_picture_has_axes_by_the_normal_deviate_and_the_point(tmp_path: Path) -> None:
    """Where scores are normal with one variance the curve is straight: as far right as it is high, all along."""
    pytest.importorskip("matplotlib")
    draw(_curve(2), tmp_path / "det.svg")
    text = (tmp_path / "det.svg").read_text()
    rate, threshold = equal_error_rate(_curve(2))
    assert f"EER {100 * rate:.3g} % at threshold {threshold:.4g}" in text
    ticks = {float(name): float(x) for x, name in _ticks(text)}
    assert {0.5, 1, 5, 10, 20, 40} <= ticks.keys()
    # normal deviates of 1, 10 and 40 %: -2.326, -1.282, -0.253
    assert (ticks[10] - ticks[1]) / (ticks[40] - ticks[10]) == pytest.approx(1.0448 / 1.0282, rel=1e-3)
    draw(_curve(0.2), tmp_path / "poor.svg")
    assert max(float(name) for _, name in _ticks((tmp_path / "poor.svg").read_text())) > 90


def _ticks(svg: str) -> list[tuple[str, str]]:
    """Position and label of every tick of the x axis."""
    axis = svg[svg.index('id="matplotlib.axis_1"') : svg.index('id="matplotlib.axis_2"')]
    ticks = re.findall(r'id="xtick_\d+">.*?<use [^>]*x="([\d.]+)".*?<!-- ([\d.]+) -->', axis, re.DOTALL)
    assert ticks
    return ticks


def test_a_picture_of_no_error_at_all(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(det_curve([0, 1], [0, 1]), tmp_path / "det.png")
    with Image.open(tmp_path / "det.png") as picture:
        low, high = picture.convert("L").getextrema()
        assert picture.size == (900, 900)
    assert (low, high) == (0, 255)
    assert [file.name for file in tmp_path.iterdir()] == ["det.png"]


def test_what_a_picture_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--det .*curve.gif: end the name in .png, .svg or .pdf"):
        draw(_curve(1), tmp_path / "curve.gif")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(InputError, match=r"matplotlib is missing; pip install 'mmprefix\[plots\]'"):
        draw(_curve(1), tmp_path / "curve.png")
