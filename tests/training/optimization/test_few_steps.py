"""FewSteps: a training of a handful of steps says so, and which options would make it long enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprefix.training.optimization.few_steps import few_steps
from tiny.captioning_system import CaptioningSystem, quietly, run

pytestmark = quietly


@pytest.mark.parametrize(("epochs", "warned"), [(1, True), (13, False)])
def test_a_short_training_says_so_in_the_log_and_the_report(
    epochs: int, warned: bool, tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe(tiny.config(), tmp_path)
    assert run("fit", recipe, trainer__max_epochs=epochs, trainer__limit_val_batches=0) == 0
    err = capfd.readouterr().err
    assert err.count("too few for a mapper to learn") == warned
    if warned:
        assert "give --trainer.max_epochs " in err


def test_a_bound_of_steps_is_what_is_to_be_raised(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe(tiny.config(), tmp_path)
    assert run("fit", recipe, trainer__max_epochs=30, trainer__max_steps=1, trainer__limit_val_batches=0) == 0
    assert "1 step in all, too few for a mapper to learn what its input is; give --trainer.max_steps 200" in (
        capfd.readouterr().err
    )


def test_the_advice_leads_to_enough_steps() -> None:
    assert "10 steps in all" in few_steps(10, 10)
    assert "--trainer.max_epochs 200 for 200 steps" in few_steps(10, 10)
    assert "1 step in all" in few_steps(1, None)
    assert "give --trainer.max_steps 200 or more" in few_steps(1, None)
