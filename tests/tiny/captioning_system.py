"""Small captioning system on disk: frozen parts of the real classes, sounds and images with captions, a recipe."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from mmprefix.cli.main import main
from mmprefix.encoders import cnn
from mmprefix.recipes.pretrain.decoder import DecoderPlan, train_decoder
from mmprefix.types import Batch
from tiny import decoders as tiny_decoders
from tiny import encoders as tiny_encoders
from tiny.copies import copy_of

SIZES = cnn.MelNetSizes(rate=16000, hop=320, mels=16, high=7000.0, channels=(4, 8), summary=8)
COLOURS = {"red": (200, 20, 20), "green": (20, 180, 20), "blue": (30, 30, 220), "white": (240, 240, 240)}
TONES = {"low": 150.0, "middling": 600.0, "high": 2400.0, "shrill": 5000.0}
QUIET_TRAINER: dict[str, Any] = {  # options of a training on the CPU that logs every step and prints nothing
    "accelerator": "cpu",
    "devices": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
quietly: Sequence[Callable[..., Any]] = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers",
        ".*LeafSpec",
        ".*in eval mode at the start of training",
        ".*is smaller than the logging interval",
        ".*exists and is not empty",
        ".*sync_dist=True",
        ".*across ranks is zero",
        ".*dirpath has changed",
        ".*callbacks used to create the checkpoint need to be provided",
    )
]


@dataclass(frozen=True)
class CaptioningSystem:
    """Folder of the parts and the data. ``recipe`` writes a recipe over them, ``run`` runs one."""

    folder: Path

    def path(self, name: str) -> str:
        """Folder of a frozen part: pictures, sounds, decoder, or another decoder."""
        return str(self.folder / name)

    def config(self, branches: Sequence[str] = ("image", "audio"), dropout: float = 0.0) -> dict[str, Any]:
        """Recipe as plain data: a model of two branches, 12 rows to train on and 7 to validate and test on."""
        classes = {
            "image": ("mmprefix.encoders.clip.Clip", self.path("pictures")),
            "audio": ("mmprefix.encoders.cnn.Cnn", self.path("sounds")),
        }
        sizes = {"length": 3, "layers": 1, "heads": 4, "hidden": 16, "dropout": dropout}
        made: dict[str, Any] = {
            name: {"encoder": {"class_path": classes[name][0], "init_args": {"model": classes[name][1]}}}
            for name in branches
        }
        mapper = "mmprefix.mappers.resampler.Resampler"
        for branch in made.values():
            branch["mapper"] = {"class_path": mapper, "init_args": dict(sizes)}
        decoder = {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": self.path("decoder")}}
        files = {split: [str(self.folder / f"{split}.jsonl")] for split in ("train", "val", "test")}
        return {
            "seed_everything": 1,
            "model": {
                "branches": made,
                "decoder": decoder,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                "generate": {"max_new_tokens": 6},
            },
            "data": {"class_path": "mmprefix.data.PairData", "init_args": {**files, "batch_size": 3}},
            "trainer": {**QUIET_TRAINER, "max_epochs": 2},
            "no_report": True,
        }

    def drawing_config(self) -> dict[str, Any]:
        """Configuration whose training draws numbers: dropout, a schedule, and sampling at validation."""
        config = self.config(dropout=0.3)
        config["model"] |= {"schedule": "linear", "generate": {"max_new_tokens": 4, "sample": True}}
        return config

    def recipe(self, config: dict[str, Any], root: Path) -> Path:
        """Write ``config`` to ``root``/recipe.yaml; the run writes below ``root``."""
        root.mkdir(parents=True, exist_ok=True)
        watch = {"class_path": "tiny.captioning_system.Watch", "init_args": {"folder": str(root)}}
        config["trainer"] |= {
            "default_root_dir": str(root),
            "callbacks": [*config["trainer"].get("callbacks", []), watch],
        }
        (root / "recipe.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return root / "recipe.yaml"


def build(folder: Path, steps: int = 100) -> CaptioningSystem:
    """Make the frozen parts, the files and the manifests in ``folder``.

    The decoder learns the captions' language for ``steps`` steps; after 300 a prefix can make it say any of them.
    """
    copy_of(f"captioning-{steps}", folder, lambda place: _make(place, steps))
    return CaptioningSystem(folder)


def _make(folder: Path, steps: int) -> None:
    torch.manual_seed(3)
    tiny_encoders.save_clip(folder / "pictures")
    cnn.save(tiny_encoders.randomized(cnn.MelNet(SIZES)), folder / "sounds")
    rows = [_picture(folder, n) for n in range(6)] + [_sound(folder, n) for n in range(6)]
    size: dict[str, Any] = {"layers": 2, "heads": 4, "width": 64, "vocab_size": 320, "positions": 48}
    texts = [text for row in rows for text in row["captions"]] * 8
    train_decoder(texts, folder / "decoder", DecoderPlan(**size, batch_tokens=256, steps=steps, lr=0.01, seed=3))
    tiny_decoders.save_decoder(folder / "another")
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    mixed = [rows[n] for n in order]  # images and sounds mixed, so that no order is kept by chance
    for name, part in {"train": mixed, "val": mixed[:7], "test": mixed[5:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def _picture(folder: Path, n: int) -> dict[str, Any]:
    word, colour = list(COLOURS.items())[n % 4]
    Image.new("RGB", (40, 32 + 4 * n), tuple(max(0, part - 5 * n) for part in colour)).save(folder / f"{n}.png")
    return {"id": f"p{n}", "image": f"{n}.png", "captions": [f"the {word} hill", f"a hill {n} is {word}."]}


def _sound(folder: Path, n: int) -> dict[str, Any]:
    word, tone = list(TONES.items())[n % 4]
    time = np.arange(int(16000 * (0.3 + 0.1 * n))) / 16000
    soundfile.write(folder / f"{n}.wav", 0.4 * np.sin(2 * np.pi * tone * time), 16000)
    return {"id": f"s{n}", "audio": f"{n}.wav", "captions": [f"a {word} bell rings", f"{n} bells, {word}."]}


def run(verb: str, recipe: Path, **options: Any) -> int:
    """Exit code of ``mmprefix VERB --config RECIPE``, with ``options`` such as trainer__max_steps=3."""
    words = [f"--{name.replace('__', '.')}={value}" for name, value in options.items()]
    return main([verb, "--config", str(recipe), *words])


def error_message(verb: str, recipe: Path, capfd: Any, **options: Any) -> str:
    """Message of a run that is refused: one line on standard error, without the program's name."""
    assert run(verb, recipe, **options) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mmprefix: ")]
    return line.removeprefix("mmprefix: ")


def checkpoint_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint, read as a file from a stranger is: without running code."""
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return True where two sets of tensors have the same names and the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metric_values(root: Path, name: str) -> list[float]:
    """Column ``name`` of the last run's metrics.csv below ``root``, top to bottom."""
    file = max(root.glob("logs/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime_ns)
    with file.open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]


def report_rows(root: Path, stage: str) -> list[dict[str, Any]]:
    """Rows of the last report of ``stage`` below ``root``."""
    files = sorted(root.glob(f"logs/version_*/captions/{stage}-step*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    return [json.loads(line) for line in files[-1].read_text().splitlines()]


@dataclass
class RecordOfTraining:
    """Record of a training in one process.

    Ids of each step with its epoch, learning rates, all weights before and after, names of tensors with a gradient.
    """

    steps: list[tuple[int, list[str]]]
    rates: list[float]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    gradients: list[str]


class Watch(Callback):
    """Callback that records a training, for each process, into ``folder``."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.steps: list[tuple[int, list[str]]] = []
        self.rates: list[float] = []
        self.gradients: set[str] = set()
        self.before: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = _state(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.steps.append((trainer.current_epoch, batch.ids))
        self.gradients |= {name for name, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        record = {"steps": self.steps, "rates": self.rates, "gradients": sorted(self.gradients)}
        record |= {"before": self.before, "after": _state(pl_module)}
        torch.save(record, self.folder / f"process{trainer.global_rank}.pt")


def _state(module: LightningModule) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def training_record(folder: Path, process: int = 0) -> RecordOfTraining:
    """Record that ``Watch`` made of one process."""
    return RecordOfTraining(**torch.load(folder / f"process{process}.pt", weights_only=True))


class Crash(Callback):
    """Callback that fails at the end of step ``at`` (counted from 1), before that step is in a checkpoint."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self.at:
            raise RuntimeError(f"broken off in step {self.at}")


class Stop(Callback):
    """Callback that stops a run without an end of its own after ``at`` steps."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.at


class Slow(Callback):
    """Callback that waits before every step, so that there is time to kill the run."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        time.sleep(0.3)
