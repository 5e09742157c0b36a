"""Checkpoints: bits that changed on the disk are found, wherever they lie."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from mmprefix.errors import InputError
from mmprefix.training.checkpoint_io import AtomicCheckpointIO


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    content = {
        "mmprefix": {},
        "state_dict": {"a": torch.arange(500.0)},
        "random_states": [],
        "moments": torch.ones(9000),
    }
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_changed_bits_are_found(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    assert AtomicCheckpointIO().load_checkpoint(checkpoint)["moments"].sum() == 9000
    place = content.index(torch.ones(100).numpy().tobytes())
    for _ in range(3):
        at = random.Random(0).randrange(place, place + 30_000)
        checkpoint.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(InputError, match=r"last.ckpt: is damaged \(.*take another checkpoint"):
            AtomicCheckpointIO().load_checkpoint(checkpoint)


@pytest.mark.parametrize("size", [0, 1, 1000, -1, -200])
def test_a_checkpoint_that_was_cut_off_is_refused(checkpoint: Path, size: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    with pytest.raises(InputError, match=r"last.ckpt: is no checkpoint that can be read") as error:
        AtomicCheckpointIO().load_checkpoint(checkpoint)
    assert "\n" not in str(error.value)
