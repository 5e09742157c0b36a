"""Resuming: a killed and resumed run ends with the bits of the uninterrupted one."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmprefix.cli.main import main
from mmprefix.training.rng_state import restore_rng_state, rng_state
from tiny.captioning_system import (
    CaptioningSystem,
    checkpoint_tensors,
    quietly,
    report_rows,
    run,
    same_tensors,
    training_record,
)
from tiny.forked import Forked

pytestmark = quietly
EVERY = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 2, "save_last": True},
}


def recipe(tiny: CaptioningSystem, root: Path) -> Path:
    """Recipe of three epochs of four steps that draws numbers wherever a training can."""
    config = tiny.drawing_config()
    config["trainer"] |= {"callbacks": [EVERY], "max_epochs": 3}
    return tiny.recipe(config, root)


@pytest.fixture(scope="module")
def whole(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    assert run("fit", recipe(tiny, root)) == 0
    return root


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_and_resumed_ends_with_the_same_bits(
    tiny: CaptioningSystem, whole: Path, tmp_path: Path
) -> None:
    made = recipe(tiny, tmp_path)
    fit = ["fit", "--config", str(made), "--trainer.callbacks+", "tiny.captioning_system.Slow"]
    killed = Forked(partial(main, fit), tmp_path / "log")
    try:
        step = _step_kept(killed, tmp_path, 6)
    finally:
        code = killed.kill()
    assert code == -signal.SIGKILL
    assert not (tmp_path / "process0.pt").exists()  # which is written at the end
    assert run("fit", made, ckpt_path="last") == 0
    seen, undisturbed = training_record(tmp_path), training_record(whole)
    assert 0 < len(seen.steps) <= 12 - step
    assert seen.steps == undisturbed.steps[-len(seen.steps) :]
    assert seen.rates == undisturbed.rates[-len(seen.steps) :]
    assert same_tensors(seen.after, undisturbed.after)


def _step_kept(process: Forked, root: Path, step: int) -> int:
    """Wait until last.ckpt, read repeatedly while it is written, holds ``step`` or a later one; return its step."""
    limit = time.monotonic() + 240
    while time.monotonic() < limit and process.poll() is None:
        if _last(root).exists():
            kept = torch.load(_last(root), weights_only=True)["global_step"]
            if kept >= step:
                return kept
        time.sleep(0.02)
    raise AssertionError((root / "log").read_text())


@pytest.mark.parametrize(("crash", "kept"), [(4, 2), (5, 4), (7, 6)])
def test_a_failed_run_is_resumed_to_the_same_bits(
    crash: int, kept: int, tiny: CaptioningSystem, whole: Path, tmp_path: Path
) -> None:
    """Checkpoints within an epoch (2, 6) and at its end (4), each older than the last step."""
    made = recipe(tiny, tmp_path)
    assert (
        run("fit", made, **{"trainer__callbacks+": "tiny.captioning_system.Crash", "trainer__callbacks__at": crash})
        == 1
    )
    assert torch.load(_last(tmp_path), weights_only=True)["global_step"] == kept
    assert run("fit", made, ckpt_path="last") == 0
    seen, undisturbed = training_record(tmp_path), training_record(whole)
    assert seen.steps == undisturbed.steps[kept:]
    assert seen.rates == undisturbed.rates[kept:]
    assert same_tensors(seen.after, undisturbed.after)
    assert same_tensors(checkpoint_tensors(_last(tmp_path)), checkpoint_tensors(_last(whole)))
    assert report_rows(tmp_path, "val") == report_rows(whole, "val")


def test_a_finished_run_goes_on_at_the_rates_of_its_new_length(tiny: CaptioningSystem, tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    assert run("fit", recipe(tiny, longer), trainer__max_epochs=4) == 0
    made = recipe(tiny, tmp_path)
    assert run("fit", made) == 0
    assert run("fit", made, trainer__max_epochs=4, ckpt_path="last") == 0
    assert training_record(tmp_path).rates == training_record(longer).rates[12:]


def test_dropout_and_sampling_draw(whole: Path, tiny: CaptioningSystem, tmp_path: Path) -> None:
    """The tests above prove nothing about random numbers unless some are drawn."""
    assert run("fit", recipe(tiny, tmp_path), seed_everything=2) == 0
    assert training_record(tmp_path).steps == training_record(whole).steps
    start, other = training_record(tmp_path).before, training_record(whole).before
    assert not same_tensors(start, other)
    draws = torch.load(_last(whole), weights_only=True)["random_states"][0]["torch"]
    torch.manual_seed(1)
    assert not torch.equal(draws, torch.get_rng_state())


def test_the_number_of_validations_does_not_change_the_training(
    tiny: CaptioningSystem, whole: Path, tmp_path: Path
) -> None:
    """Validation samples captions from the generator that dropout uses."""
    assert run("fit", recipe(tiny, tmp_path), trainer__val_check_interval=1) == 0
    assert same_tensors(training_record(tmp_path).after, training_record(whole).after)


def test_the_state_of_every_generator_is_restored() -> None:
    state = rng_state()

    def draw() -> tuple[Any, ...]:
        return random.gauss(0, 1), np.random.standard_normal(), float(torch.randn(())), random.random()  # noqa: NPY002

    first = draw()
    assert draw() != first
    restore_rng_state(state)
    assert draw() == first


def _last(root: Path) -> Path:
    return root / "checkpoints" / "last.ckpt"
