"""ClimbingLoss: a training whose loss climbs says so, once; one that learns says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmprefix.errors import InputError
from mmprefix.training.climbing_loss import ClimbingLoss
from tiny.captioning_system import CaptioningSystem, quietly, run

pytestmark = quietly


@pytest.mark.parametrize("climbs", [True, False])
def test_a_training_that_climbs_says_so_once(
    climbs: bool, tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe(tiny.config(), tmp_path)
    options = {"model__optimizer__init_args__maximize": climbs, "model__warmup": 20}
    assert run("fit", recipe, trainer__max_epochs=15, trainer__limit_val_batches=0, **options) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "the loss climbs: " in line]
    assert len(lines) == climbs
    assert all("a lower rate (model.optimizer's lr) or a longer warm-up" in line for line in lines)


@pytest.mark.parametrize(
    ("losses", "times"),
    [
        ([4.0, 3.0, 2.0, 1.0], 0),
        ([4.0, 3.0, 3.1, 3.0], 0),  # it wavers
        ([4.0, 3.0, 3.2, 6.0], 1),
        ([4.0, float("nan"), 1.0, 1.0], 1),
    ],
)
def test_what_counts_as_climbing(losses: list[float], times: int) -> None:
    trend = ClimbingLoss()
    windows = [[mean - 0.1, mean + 0.1, mean - 0.2, mean + 0.2] for mean in losses]
    assert sum(trend.climbs(torch.tensor(window), 4 * number) for number, window in enumerate(windows)) == times


def test_batches_that_differ_much_are_no_climb() -> None:
    trend = ClimbingLoss()
    assert not trend.climbs(torch.tensor([2.0, 3.0, 4.0]), 3)
    assert not trend.climbs(torch.tensor([1.0, 3.5, 6.5]), 6)
    with pytest.raises(InputError, match=r"ClimbingLoss.window 1: give a number from 2 on"):
        ClimbingLoss(1)
