"""Options of a run that belong to no class: the callbacks that they ask for."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from mmprefix.cli.training.run_folder import RunFolder
from mmprefix.cli.training.run_options import ENCODE_OPTIONS, RUN_OPTIONS, checkpoint_callbacks
from mmprefix.training.best_checkpoint import BestCheckpoint
from mmprefix.training.checkpoints import LastCheckpoint

DEFAULTS = {name: default for name, _, default, _ in RUN_OPTIONS}


@pytest.mark.parametrize(("saves_last", "signals_only"), [(True, True), (False, False), (None, False)])
def test_checkpoints_follow_the_options(saves_last: bool | None, signals_only: bool) -> None:
    """A ModelCheckpoint of the recipe that keeps the last state is not doubled."""
    config = Namespace(**DEFAULTS | {"monitor": "val/cider_d", "patience": 3, "checkpoint_every_steps": 5})
    own = [ModelCheckpoint(save_last=saves_last)]
    best, last = checkpoint_callbacks(config, RunFolder(Path("runs/r")), [*own])
    assert isinstance(best, BestCheckpoint)
    assert isinstance(last, LastCheckpoint)
    assert (best.file, best.monitor, best.mode, best.patience) == (
        Path("runs/r/checkpoints/best.ckpt"), "val/cider_d", "max", 3,
    )  # fmt: skip
    assert (last.file, last.minutes, last.steps) == (Path("runs/r/checkpoints/last.ckpt"), 10.0, 5)
    assert last.signals_only is signals_only


@pytest.mark.parametrize("options", [RUN_OPTIONS, ENCODE_OPTIONS])
def test_names_are_unique_and_sentences_end(options: list[tuple[str, object, object, str]]) -> None:
    assert len({name for name, *_ in options}) == len(options)
    assert all(text[0].isupper() and text.endswith(".") for *_, text in options)
