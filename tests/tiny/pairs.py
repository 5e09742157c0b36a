"""PairData without a language model: a module that fits one number, a trainer, and a folder of small sounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import PairData
from mmprefix.types import Batch, Media
from tiny.readers import RATE, LoadPicture, LoadSound

quietly = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]


class Learner(LightningModule):
    """Module that fits one number to the sums of its inputs and records the ids of every step."""

    def __init__(self, branches: tuple[str, ...] = ("audio",), stop_after: int | None = None) -> None:
        super().__init__()
        self.inputs = ModelInputs({name: LoadSound() if name == "audio" else LoadPicture() for name in branches})
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after = stop_after
        self.steps: list[list[str]] = []
        self.evaluated: list[list[str]] = []

    def training_step(self, batch: Batch, number: int) -> Tensor:
        if self.stop_after is not None and len(self.steps) == self.stop_after:
            raise KeyboardInterrupt
        self.steps.append(batch.ids)
        (media,) = batch.inputs.values()
        assert isinstance(media, Media)
        return (self.weight - media.values.sum()) ** 2

    def validation_step(self, batch: Batch, number: int) -> None:
        self.evaluated.append(batch.ids)

    test_step = validation_step

    def predict_step(self, batch: Batch, number: int) -> list[str]:
        return batch.ids

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([self.weight], lr=0.1)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """Silent Trainer on the CPU, three epochs; checkpoints only with ``callbacks``."""
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "use_distributed_sampler": False, **options}
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        **options,
    )


def data(folder: Path, **options: Any) -> PairData:
    """PairData over ``folder``, 4 rows a batch."""
    return PairData(root=str(folder), **{"batch_size": 4, "seed": 3, **options})


def alone(folder: Path, branches: tuple[str, ...] = ("audio",), stage: str = "fit", **options: Any) -> PairData:
    """PairData that is set up without a Trainer."""
    pairs = data(folder, **options)
    pairs.inputs = Learner(branches).inputs
    pairs.setup(stage)
    return pairs


def write_sounds(folder: Path) -> Path:
    """Write 19 training and 5 validation sounds of 20 to 221 ms and their manifest."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(24):
        soundfile.write(folder / f"{number}.wav", random.uniform(-0.1, 0.1, 160 + 70 * number), RATE)
        captions = [f"sound {number} said in {way} words" for way in ("few", "more", "many other")]
        row = {
            "id": f"s{number}",
            "audio": f"{number}.wav",
            "captions": captions,
            "split": "train" if number < 19 else "val",
        }
        lines.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder
