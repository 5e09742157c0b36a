"""SIGTERM and Ctrl-C in a training: a checkpoint of that moment, how to go on, the bits of the uninterrupted run."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mmprefix.cli.main import main
from mmprefix.types import Batch
from tiny.captioning_system import (
    CaptioningSystem,
    checkpoint_tensors,
    quietly,
    run,
    same_tensors,
    training_record,
)
from tiny.forked import Forked

pytestmark = quietly
POINTS = [  # moment, and how often it has come before: epochs of four steps, a validation of three batches at each end
    ("batch_start", 0),
    ("batch_start", 5),
    ("batch_end", 3),
    ("validation_start", 0),
    ("validation_batch", 1),
    ("validation_batch", 5),
    ("validation_end", 0),
    ("epoch_end", 0),
]


class Signal(Callback):
    """Callback that sends this process a signal at the moment ``at`` when it comes for the time ``after`` + 1."""

    def __init__(self, at: str, after: int, number: int = int(signal.SIGTERM)) -> None:
        self.at, self.after, self.number = at, after, number

    def _reach(self, moment: str) -> None:
        if moment == self.at:
            if self.after == 0:
                os.kill(os.getpid(), self.number)
            self.after -= 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._reach("batch_start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._reach("batch_end")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reach("validation_start")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._reach("validation_batch")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reach("validation_end")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reach("epoch_end")


def recipe(tiny: CaptioningSystem, root: Path) -> Path:
    """Recipe of two epochs of four steps that draws numbers wherever a training can."""
    return tiny.recipe(tiny.drawing_config(), root)


@pytest.fixture(scope="module")
def whole(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    assert run("fit", recipe(tiny, root)) == 0
    return root


@pytest.fixture(autouse=True)
def handlers_are_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    yield
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def signalled(made: Path, at: str, after: int, number: int = signal.SIGTERM, **options: Any) -> int:
    """Exit code of a fit that gets a signal."""
    callback = {"trainer__callbacks+": f"{__name__}.Signal", "trainer__callbacks__at": at}
    return run(
        "fit", made, **callback, trainer__callbacks__after=after, trainer__callbacks__number=int(number), **options
    )


def rows_by_step(root: Path) -> dict[str, str]:
    """Captions of each validation."""
    return {file.name: file.read_text() for file in root.glob("logs/version_*/captions/val-step*.jsonl")}


def line_to_go_on(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line that says how to go on."""
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "go on with" in line]
    return line


@pytest.mark.parametrize(("at", "after"), POINTS)
def test_a_run_that_sigterm_stopped_goes_on_to_the_same_bits(
    at: str, after: int, tiny: CaptioningSystem, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = recipe(tiny, tmp_path)
    assert signalled(made, at, after) == 143
    line = line_to_go_on(capfd)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert line.endswith(f"--ckpt_path {last}")
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"step {step} is kept in {last};" in line
    command = shlex.split(line.split("go on with: mmprefix ")[1])
    assert main(["fit", "--config", str(made), "--ckpt_path", command[-1]]) == 0
    seen, undisturbed = training_record(tmp_path), training_record(whole)
    assert seen.steps == undisturbed.steps[step:]
    assert seen.rates == undisturbed.rates[step:]
    assert same_tensors(seen.after, undisturbed.after)
    assert same_tensors(checkpoint_tensors(last), checkpoint_tensors(whole / "checkpoints" / "last.ckpt"))
    assert rows_by_step(tmp_path) == rows_by_step(whole)


def test_a_signal_after_the_last_step_leaves_nothing_to_train(
    tiny: CaptioningSystem, whole: Path, tmp_path: Path
) -> None:
    made = recipe(tiny, tmp_path)
    assert signalled(made, "epoch_end", 1) == 143
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert run("fit", made, ckpt_path=last) == 0
    assert same_tensors(checkpoint_tensors(last), checkpoint_tensors(whole / "checkpoints" / "last.ckpt"))


def test_ctrl_c_with_validations_within_epochs_and_gathered_gradients(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A step of two batches is not torn, and a validation within an epoch is done once."""
    options = {"trainer__accumulate_grad_batches": 2, "trainer__val_check_interval": 2}
    assert run("fit", recipe(tiny, tmp_path / "whole"), **options) == 0
    for at, after in (("batch_start", 2), ("validation_batch", 0), ("validation_end", 0)):
        root = tmp_path / f"{at}{after}"
        made = recipe(tiny, root)
        assert signalled(made, at, after, signal.SIGINT, **options) == 130
        assert "stopped by SIGINT" in line_to_go_on(capfd)
        assert run("fit", made, ckpt_path=root / "checkpoints" / "last.ckpt", **options) == 0
        seen, undisturbed = training_record(root), training_record(tmp_path / "whole")
        assert seen.steps == undisturbed.steps[-len(seen.steps) :]
        assert same_tensors(seen.after, undisturbed.after)
        assert rows_by_step(root) == rows_by_step(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_of_a_run(
    number: signal.Signals, code: int, tiny: CaptioningSystem, tmp_path: Path
) -> None:
    """A signal of a scheduler or a terminal reaches the workers that read files too."""
    process = started(recipe(tiny, tmp_path), "--data.init_args.num_workers=1")
    try:
        wait_for(lambda: (tmp_path / "checkpoints" / "last.ckpt").exists(), process)
        os.killpg(process.pid, number)
        assert process.wait(240) == code, process.log.read_text()
    finally:
        process.kill()
    log = process.log.read_text()
    assert "go on with: mmprefix fit" in log
    assert "Traceback" not in log
    step = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert f"step {step} is kept in " in log


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(tiny: CaptioningSystem, tmp_path: Path) -> None:
    process = started(recipe(tiny, tmp_path), "--trainer.callbacks.seconds=300")
    try:
        wait_for(lambda: "begins a step" in process.log.read_text(), process)
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 143  # long before the step ends
    finally:
        process.kill()


class Slow(Callback):
    """Callback that waits before every step."""

    def __init__(self, seconds: float = 0.3) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        print("begins a step", flush=True)  # noqa: T201 (the test waits for it)
        time.sleep(self.seconds)


def started(made: Path, *options: str) -> Forked:
    """A slow fit in a process group of its own."""
    words = ["fit", "--config", str(made), "--trainer.callbacks+", f"{__name__}.Slow", *options]
    return Forked(partial(main, [*words, "--trainer.max_epochs=50"]), made.parent / "log", leads=True)


def wait_for(condition: Callable[[], bool], process: Forked) -> None:
    """Wait until ``condition`` holds; fail with the log where the process ends before."""
    limit = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < limit, process.log.read_text()  # noqa: PT018
        time.sleep(0.02)
