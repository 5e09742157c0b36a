"""Logs of a run: metrics as CSV and for TensorBoard, the recipe and its hyper-parameters; a full disk is one line."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from mmprefix.atomic import disk_errors_as_input_errors
from mmprefix.trust.plain_yaml import parse_yaml


class CsvLog(CSVLogger):
    """metrics.csv and hparams.yaml."""

    def log_hyperparams(self, params: Any = None) -> None:
        with disk_errors_as_input_errors(Path(self.log_dir) / "hparams.yaml"):
            super().log_hyperparams(params)

    def save(self) -> None:
        with disk_errors_as_input_errors(Path(self.log_dir) / "metrics.csv"):
            super().save()


class TensorBoardLog(TensorBoardLogger):
    """Event files of TensorBoard."""

    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        with disk_errors_as_input_errors(Path(self.log_dir)):
            super().log_hyperparams(params, metrics, step)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        with disk_errors_as_input_errors(Path(self.log_dir)):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with disk_errors_as_input_errors(Path(self.log_dir)):
            super().save()

    def finalize(self, status: str) -> None:
        with disk_errors_as_input_errors(Path(self.log_dir)):
            super().finalize(status)


def loggers_of(root: Path) -> list[Logger]:
    """Both logs, below ``root``/logs/version_N."""
    csv = CsvLog(root, name="logs")
    return [csv, TensorBoardLog(root, name="logs", version=csv.version, default_hp_metric=False)]


@contextmanager
def quiet_writer_threads() -> Generator[None, None, None]:
    """Print no traceback of TensorBoard's thread when the disk is full: the main thread gets the same error."""
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            before(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class SaveRecipe(Callback):
    """Callback that writes the whole recipe beside the logs, and gives it to the loggers as hyper-parameters.

    ``config`` is what ``parser`` read; ``options`` is the same as plain data.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any) -> None:
        self.text = parser.dump(config, skip_none=False, skip_validation=True)  # checked when it was parsed
        self.options: dict[str, Any] = parse_yaml(self.text, "the options of the run")
        self.saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save once, in the first process: a fit may be followed by a test."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # all processes agree on it
        if trainer.is_global_zero and not self.saved:
            file = folder / "config.yaml"
            with disk_errors_as_input_errors(file):
                folder.mkdir(parents=True, exist_ok=True)
                file.write_text(self.text, encoding="utf-8")
            for logger in trainer.loggers:
                logger.log_hyperparams(self.options)
        self.saved = True
