"""BestCheckpoint: the best validation is kept and saved, and a training that gets no better ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmprefix.errors import InputError
from mmprefix.training.best_checkpoint import BestCheckpoint
from tiny.captioning_system import CaptioningSystem, checkpoint_tensors, error_message, quietly, run, same_tensors

pytestmark = quietly
WORSE = {"monitor": "val/loss", "monitor_mode": "max", "patience": 1}  # the loss falls: the first one is the highest


def step_of(file: Path) -> int:
    return torch.load(file, weights_only=True)["global_step"]


def test_the_best_state_is_saved_and_patience_ends_the_run(tiny: CaptioningSystem, tmp_path: Path) -> None:
    recipe = tiny.recipe(tiny.config(["image"]), tmp_path)
    assert run("fit", recipe, trainer__max_epochs=6, **WORSE) == 0
    best, last = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    steps = step_of(best), step_of(last)
    assert steps == (2, 4)
    saved = {f"model.{name}": tensor for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items()}
    assert same_tensors(saved, checkpoint_tensors(best))
    assert not same_tensors(saved, checkpoint_tensors(last))
    assert run("fit", recipe, ckpt_path="last", save="last", trainer__max_epochs=6, **WORSE) == 0
    assert step_of(last) == 4  # patience had ended the run
    saved = {f"model.{name}": tensor for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items()}
    assert same_tensors(saved, checkpoint_tensors(last))


def test_a_figure_that_no_validation_has_is_refused_with_those_that_it_has(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe(tiny.config(["image"]), tmp_path)
    message = error_message("fit", recipe, capfd, monitor="val/accuracy")
    assert message.startswith("monitor val/accuracy: this validation has no such figure; it has val/loss")


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/loss", "min"), ("val/eer", "min"), ("val/cider_d", "max"), ("val/exact_match", "max"), ("val/auc", "max")],
)
def test_which_is_better_follows_from_the_figure(monitor: str, mode: str, tmp_path: Path) -> None:
    assert BestCheckpoint(tmp_path / "best.ckpt", monitor=monitor).mode == mode


def test_nan_is_never_better(tmp_path: Path) -> None:
    callback = BestCheckpoint(tmp_path / "best.ckpt")
    assert not callback._is_better(float("nan"))
    callback.value = 1.0
    assert [callback._is_better(value) for value in (0.5, 1.0, float("nan"))] == [True, False, False]


def test_options_that_no_run_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="patience 0"):
        BestCheckpoint(tmp_path / "best.ckpt", patience=0)
    with pytest.raises(InputError, match="monitor_mode"):
        BestCheckpoint(tmp_path / "best.ckpt", mode="least")
