"""Options of a run that belong to no class, and the callbacks that they ask for."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser

from mmprefix.cli.training.run_folder import RunFolder
from mmprefix.training.best_checkpoint import BestCheckpoint
from mmprefix.training.checkpoints import LastCheckpoint
from mmprefix.weights.part_places import PACK_LIMIT


def add_run_options(parser: LightningArgumentParser) -> None:
    """Add the options to ``parser``."""
    options: list[tuple[str, Any, Any, str]] = [
        ("name", str | None, None, "name of the run, which writes to runs/NAME; otherwise that of the recipe's file"),
        ("overwrite", bool, False, "write over an earlier run, model or file in the same place"),
        ("save_to", str | None, None, "folder for the trained model; otherwise model in the run's folder"),
        ("save", Literal["best", "last", "none"], "best", "which state fit saves: best by monitor, last, or none"),
        ("pack", bool, False, "copy small frozen parts into the saved model"),
        ("pack_limit", float, PACK_LIMIT, "megabytes of a part that is packed"),
        ("license", str | None, None, "licence of the saved model, for its card"),
        ("language", list[str], [], "languages that it writes, for its card"),
        ("monitor", str, "val/loss", "figure of a validation that tells the best state"),
        ("monitor_mode", Literal["min", "max"] | None, None, "which is better; otherwise by the figure's name"),
        ("patience", int | None, None, "stop after so many validations without a better figure"),
        ("checkpoint_every_minutes", float | None, 10.0, "write a checkpoint by time, besides each epoch's end"),
        ("checkpoint_every_steps", int | None, None, "write a checkpoint by optimizer steps as well"),
        ("test_after_fit", bool, False, "whether fit ends with a test"),
        ("dry_run", bool, False, "build, print sizes, and stop"),
        ("cache", str | None, None, "folder of a feature store to use"),
        ("cache_dtype", str, "float16", "precision of stored features: float16 or float32"),
        ("out", str | None, None, "file that predict writes, or folder of the shards that encode writes"),
    ]
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
