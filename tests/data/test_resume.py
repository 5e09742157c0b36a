"""Resuming: the batches of an interrupted run are those of the uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mmprefix.data.manifest import Example
from mmprefix.data.resume import ResumingSampler, RunPosition, order_fingerprint
from mmprefix.data.samplers import BucketSampler
from mmprefix.errors import InputError
from tiny.pairs import Learner, alone, data, quietly, trainer, write_sounds

pytestmark = quietly


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


def uninterrupted(folder: Path, sounds: Path, **options: Any) -> Learner:
    module = Learner()
    trainer(folder, **options).fit(module, datamodule=data(sounds))
    return module


def resumed(
    folder: Path, sounds: Path, save: ModelCheckpoint, stop: int, workers: int, **options: Any
) -> tuple[Any, Any]:
    """Learner stopped in step ``stop`` + 1, and the learner resumed from its last checkpoint."""
    first, second = Learner(stop_after=stop), Learner()
    with pytest.raises(SystemExit):  # how Lightning ends a run that was interrupted
        trainer(folder, save, **options).fit(first, datamodule=data(sounds, num_workers=workers))
    trainer(folder, **options).fit(second, datamodule=data(sounds, num_workers=workers), ckpt_path=folder / "last.ckpt")
    return first, second


@pytest.mark.filterwarnings("ignore:.*KeyboardInterrupt")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("every", "stop"), [(2, 3), (7, 8), (5, 6), (10, 10)], ids=["0.4", "1.4", "0 end", "1 end"])
def test_a_run_stopped_within_an_epoch_is_resumed_with_the_same_batches(
    tmp_path: Path, sounds: Path, every: int, stop: int, workers: int
) -> None:
    whole = uninterrupted(tmp_path, sounds)
    assert len(whole.steps) == 15
    save = ModelCheckpoint(tmp_path, every_n_train_steps=every, save_last=True, save_top_k=0)
    first, second = resumed(tmp_path, sounds, save, stop, workers)
    assert first.steps[:every] + second.steps == whole.steps
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*KeyboardInterrupt")
@pytest.mark.parametrize("by_steps", [False, True])
@pytest.mark.parametrize("on_train_epoch_end", [False, True])
def test_checkpoints_at_the_end_of_an_epoch(
    tmp_path: Path, sounds: Path, by_steps: bool, on_train_epoch_end: bool
) -> None:
    limit: dict[str, Any] = {"max_epochs": -1, "max_steps": 15} if by_steps else {}
    whole = uninterrupted(tmp_path, sounds, **limit)
    save = ModelCheckpoint(tmp_path, save_last=True, save_top_k=-1, save_on_train_epoch_end=on_train_epoch_end)
    first, second = resumed(tmp_path, sounds, save, 7, 0, **limit)
    assert first.steps[:5] + second.steps == whole.steps
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*KeyboardInterrupt")
@pytest.mark.parametrize("options", [{"limit_train_batches": 3, "max_epochs": 4}, {"val_check_interval": 2}])
def test_resuming_with_part_epochs_and_validation_within_them(
    tmp_path: Path, sounds: Path, options: dict[str, Any]
) -> None:
    whole = uninterrupted(tmp_path, sounds, **options)
    save = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True, save_top_k=0)
    first, second = resumed(tmp_path, sounds, save, 6, 0, **options)
    assert first.steps[:4] + second.steps == whole.steps


def test_resuming_is_refused_within_an_epoch_of_other_batches(tmp_path: Path, sounds: Path) -> None:
    for steps, name in ((7, "middle.ckpt"), (10, "end.ckpt")):
        run = trainer(tmp_path, max_steps=steps)
        run.fit(Learner(), datamodule=data(sounds))
        run.save_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match=r"after 2 batches.*data\.batch_size was 4, is 3"):
        trainer(tmp_path).fit(Learner(), datamodule=data(sounds, batch_size=3), ckpt_path=tmp_path / "middle.ckpt")
    module = Learner()
    trainer(tmp_path).fit(module, datamodule=data(sounds, batch_size=3), ckpt_path=tmp_path / "end.ckpt")
    fresh = alone(sounds, batch_size=3)
    fresh.train_dataloader()
    sampler = BucketSampler(fresh.rows["train"].keys, 3, seed=3)
    names = [example.id for example in fresh.rows["train"].examples]
    assert module.steps == [[names[row] for row in draw.rows] for draw in sampler.batches(2)]


class Numbered:
    """Batches 0 to 4 of an epoch, as (epoch, batch)."""

    def __init__(self) -> None:
        self.start = 0, 0

    def __len__(self) -> int:
        return 5

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.start = epoch, skip

    def __iter__(self) -> Iterator[Any]:
        epoch, skip = self.start
        return iter([(epoch, batch) for batch in range(skip, 5)])


@pytest.mark.parametrize(("done", "first"), [(0, (0, 0)), (3, (0, 3)), (4, (1, 0)), (11, (2, 3))])
def test_the_sampler_is_where_the_trained_batches_say(done: int, first: tuple[int, int]) -> None:
    sampler = ResumingSampler(Numbered(), lambda: done, limit=4)  # of the five batches a run takes four
    assert (len(sampler), sampler.position(), next(iter(sampler))) == (5, first, first)


@pytest.mark.parametrize(("done", "first"), [(6, (2, 1)), (7, (2, 2)), (10, (3, 0)), (0, (2, 1))])
def test_a_resumed_sampler_counts_from_its_checkpoint(done: int, first: tuple[int, int]) -> None:
    sampler = ResumingSampler(Numbered(), lambda: done, limit=5, origin=(2, 1, 6))
    assert next(iter(sampler)) == first  # with 0: the trainer has not restored its count yet


STATE = {"epoch": 1, "batches": 2, "total": 7, "content": {"rows": 3}}


@pytest.mark.parametrize(
    "change", [{"epoch": -1}, {"batches": None}, {"total": 2.5}, {"epoch": True}, {"content": ["rows"]}]
)
def test_a_position_that_no_run_was_in_is_refused(change: dict[str, Any]) -> None:
    position = RunPosition()
    with pytest.raises(InputError, match="does not say where in its data the run was"):
        position.load_state_dict({**STATE, **change})
    position.load_state_dict(STATE)
    position.load_state_dict({})  # of a run that had not begun
    assert position.state_dict() == {}


def test_the_fingerprint_changes_with_all_that_the_order_follows_from() -> None:
    row = Example("a", {}, ("one", "two"), context="c", line=1)
    base = order_fingerprint([row], 1, {"seed": 0})
    assert base["rows"] == 1
    assert order_fingerprint([replace(row)], 1, {"seed": 0}) == base
    others = [replace(row, **change) for change in ({"id": "b"}, {"captions": ("one",)}, {"context": "d"}, {"line": 2})]
    prints = [order_fingerprint([other], 1, {"seed": 0}) for other in others]
    prints += [order_fingerprint([row], 2, {"seed": 0}), order_fingerprint([row], 1, {"seed": 1})]
    assert all(other != base for other in prints)
    assert order_fingerprint([row, row], 1, {"seed": 0})["rows"] == 2
