"""Atomic writes on a full disk (the system refuses the write): a message of one line, earlier files unchanged."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprefix.atomic import write_atomically
from mmprefix.errors import InputError
from mmprefix.inference.predictor import load
from mmprefix.training.checkpoint_io import AtomicCheckpointIO
from tiny.captioning_system import CaptioningSystem, checkpoint_tensors, error_message, quietly, run

pytestmark = quietly
KB = 1024


@pytest.fixture(scope="module")
def fitted(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a training of one step: checkpoints/last.ckpt and model/."""
    root = tmp_path_factory.mktemp("fit")
    recipe = tiny.recipe(tiny.config(["image"]), root)
    assert run("fit", recipe, save_to=root / "model", trainer__max_steps=1) == 0
    return root


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Limit every file of this process to ``room`` bytes: the system refuses further writes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 10 * KB])
def test_a_full_disk_leaves_the_old_checkpoint(fitted: Path, tmp_path: Path, room: int) -> None:
    file = Path(shutil.copy(fitted / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt"))
    content = torch.load(file, weights_only=True)
    before = file.read_bytes()
    with full_disk(room), pytest.raises(InputError, match=r"last.ckpt: could not be written .*is untouched") as caught:
        AtomicCheckpointIO().save_checkpoint({**content, "state_dict": {"more": torch.ones(9000)}}, file)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    AtomicCheckpointIO().save_checkpoint({**content, "state_dict": {"more": torch.ones(9000)}}, file)
    assert checkpoint_tensors(file)["more"].sum() == 9000


@pytest.mark.parametrize("room", [0, 10 * KB])
def test_a_full_disk_leaves_the_old_model(fitted: Path, tmp_path: Path, room: int) -> None:
    model = Path(shutil.copytree(fitted / "model", tmp_path / "model"))
    predictor = load(model, device="cpu")
    with torch.no_grad():
        for tensor in predictor.model.trained.values():
            tensor.add_(1)
    with full_disk(room), pytest.raises(InputError, match=r"model: could not be written .*is untouched") as caught:
        predictor.save(model)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    for file in (fitted / "model").iterdir():
        assert (model / file.name).read_bytes() == file.read_bytes()
    load(model, device="cpu")


def test_a_full_disk_stops_a_training_in_one_line(tiny: CaptioningSystem, tmp_path: Path, capfd: Any) -> None:
    config = tiny.config(["image"])
    config["trainer"]["logger"] = False
    recipe = tiny.recipe(config, tmp_path)
    with full_disk(10 * KB):
        message = error_message("fit", recipe, capfd, trainer__max_epochs=1)
    assert message.startswith(str(tmp_path / "checkpoints"))
    assert "could not be written" in message
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("old")

    def broken(fresh: Path) -> None:
        fresh.write_text("new, but")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, broken)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert file.read_text() == "old"
