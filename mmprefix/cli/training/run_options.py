"""Options of a run that belong to no class, the callbacks that they ask for, and the Trainer's own defaults."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser

from mmprefix.cli.training.run_folder import RunFolder
from mmprefix.training.best_checkpoint import BestCheckpoint
from mmprefix.training.checkpoint_io import AtomicCheckpointIO
from mmprefix.training.checkpoints import LastCheckpoint
from mmprefix.weights.devices import best_device, multiplies_bfloat16
from mmprefix.weights.part_places import PACK_LIMIT

log = logging.getLogger(__name__)
RUN_OPTIONS: list[tuple[str, Any, Any, str]] = [  # name, type, default, sentence
    ("name", str | None, None, "Name of the run, which writes to runs/NAME; otherwise that of the recipe's file."),
    ("overwrite", bool, False, "Write over an earlier run, model or file in the same place."),
    ("save_to", str | None, None, "Folder for the trained model; otherwise model in the run's folder."),
    ("save", Literal["best", "last", "none"], "best", "Which state fit saves: best by monitor, last, or none."),
    ("pack", bool, False, "Copy small frozen parts into the saved model."),
    ("pack_limit", float, PACK_LIMIT, "Megabytes of a part that is packed."),
    ("license", str | None, None, "Licence of the saved model, for its card."),
    ("language", list[str], [], "Languages that it writes, for its card."),
    ("monitor", str, "val/loss", "Figure of a validation that tells the best state."),
    ("monitor_mode", Literal["min", "max"] | None, None, "Which is better; otherwise by the figure's name."),
    ("patience", int | None, None, "Stop after so many validations without a better figure."),
    ("checkpoint_every_minutes", float | None, 10.0, "Write a checkpoint by time, besides each epoch's end."),
    ("checkpoint_every_steps", int | None, None, "Write a checkpoint by optimizer steps as well."),
    ("test_after_fit", bool, False, "Whether fit ends with a test."),
    ("no_report", bool, False, "Draw no report.html behind a fit or a test."),
    ("report_megabytes", float, 5.0, "Most megabytes of that page."),
    ("dry_run", bool, False, "Build, print sizes, and stop."),
    ("cache", str | None, None, "Folder of a feature store to use."),
    ("cache_dtype", str, "float16", "Precision of stored features: float16 or float32."),
    ("out", str | None, None, "File that predict writes, or folder of the shards that encode writes."),
]
ENCODE_OPTIONS: list[tuple[str, Any, Any, str]] = [
    ("to", Literal["store", "webdataset"], "store", "Form of the features: the store alone, or shards in --out too."),
    ("shard_rows", int, 1000, "Most rows of a shard."),
]
TRAINER_DEFAULTS: dict[str, Any] = {  # other than Lightning's
    "log_every_n_steps": 1,
    "plugins": [{"class_path": f"{AtomicCheckpointIO.__module__}.{AtomicCheckpointIO.__qualname__}"}],
    "use_distributed_sampler": False,
}


def add_run_options(parser: LightningArgumentParser, options: Sequence[tuple[str, Any, Any, str]]) -> None:
    """Add ``options``, of the form of ``RUN_OPTIONS``, to ``parser``."""
    for name, kind, default, text in options:
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)


def checkpoint_callbacks(config: Any, folder: RunFolder, configured: list[Callback]) -> list[Callback]:
    """Callbacks that keep the best and the last state of a fit.

    Where a ModelCheckpoint of the recipe keeps ``last.ckpt``, ours writes it only when a signal stops the run.
    """
    own = any(isinstance(callback, ModelCheckpoint) and bool(callback.save_last) for callback in configured)
    return [
        BestCheckpoint(folder.best, monitor=config.monitor, mode=config.monitor_mode, patience=config.patience),
        LastCheckpoint(
            folder.last,
            minutes=config.checkpoint_every_minutes,
            steps=config.checkpoint_every_steps,
            signals_only=own,
        ),
    ]


def usable_precision(precision: Any, accelerator: Any) -> Any:
    """``precision``, or "32-true" where half precision would run on a CPU without its products, 30 times as slowly.

    A CPU may have those of bfloat16, never those of float16.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and best_device() == "cpu")
    half = precision is not None and str(precision).startswith(("16", "bf16"))
    if not on_cpu or not half or (str(precision).startswith("bf16") and multiplies_bfloat16()):
        return precision
    log.warning(
        "trainer.precision %s: many times slower on a CPU, which this run uses; float32 is used instead", precision
    )
    return "32-true"
