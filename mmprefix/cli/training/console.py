"""Output of a run: the model, the data and the losses on the terminal, whatever libraries say in ``log.txt``.

Messages of Lightning, Transformers and others, and Python's warnings, are written to the file in the run's folder;
errors are shown too, and with ``--verbose`` all of them. The file also holds what the terminal shows.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mmprefix.cli.training.run_folder import MESSAGES, RunFolder
from mmprefix.errors import InputError
from mmprefix.mappers.parallel import Parallel
from mmprefix.training.task import PrefixTask

log = logging.getLogger(__name__)
OURS = "mmprefix"
DETAILS = "mmprefix.weights"  # its messages of level DEBUG are for the file: how weights are stored and used
LIBRARIES = (
    "huggingface_hub",
    "lightning",
    "lightning.fabric",
    "lightning.pytorch",
    "open_clip",
    "py.warnings",
    "torch",
    "transformers",
)


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class PlainFormatter(logging.Formatter):
    """Formatter that leaves out the colours of libraries: of a file always, of a terminal with NO_COLOR."""

    def format(self, record: logging.LogRecord) -> str:
        """Text of ``record`` without colours."""
        return _COLOURS.sub("", super().format(record))


class RunLog(logging.Handler):
    """Handler that keeps records until ``open`` names the file of the run, and then writes them and all later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
        self.kept: list[logging.LogRecord] = []
        self.file: logging.FileHandler | None = None

    def open(self, file: Path) -> None:
        """Write to the end of ``file``. Raises InputError where it cannot be written."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.file = logging.FileHandler(file, mode="a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise InputError(f"{file}: cannot be written ({error.strerror})") from error
        self.file.setFormatter(self.formatter)
        for record in self.kept:
            self.file.emit(record)
        self.kept.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Write or keep ``record``."""
        if self.file is None:
            self.kept.append(record)
        else:
            self.file.emit(record)

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
        super().close()


class _Terminal(logging.Handler):
    """Handler that writes to standard error as it is now: a notebook or a test may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


@contextmanager
def library_messages_to_file(verbose: bool) -> Generator[None]:
    """Send messages of libraries to the file of ``open_run_log``; errors, or all if ``verbose``, are shown too."""
    run_log, terminal = RunLog(), _Terminal()
    terminal.setFormatter(PlainFormatter() if os.environ.get("NO_COLOR") else None)
    terminal.setLevel(logging.NOTSET if verbose else logging.ERROR)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [run_log, terminal], False
    logging.getLogger(OURS).addHandler(run_log)
    details = logging.getLogger(DETAILS)
    details.setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        details.setLevel(logging.NOTSET)
        logging.getLogger(OURS).removeHandler(run_log)
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        run_log.close()


def open_run_log(folder: Path) -> None:
    """Write the messages of this run, those from before too, to ``log.txt`` in its ``folder``."""
    for handler in logging.getLogger(OURS).handlers:
        if isinstance(handler, RunLog) and handler.file is None:
            handler.open(folder / MESSAGES)


def quiet_trainer(trainer: Any) -> None:
    """Leave the progress bar to terminals, and its table of parts, which ``RunConsole`` shows, to who asks."""
    bar = trainer.enable_progress_bar
    trainer.enable_progress_bar = sys.stderr.isatty() if bar is None else bar
    trainer.enable_model_summary = bool(trainer.enable_model_summary)


def split_verbose(words: list[str]) -> tuple[bool, list[str]]:
    """True if ``--verbose`` is among ``words``, and the others."""
    return "--verbose" in words, [word for word in words if word != "--verbose"]


def parameter_table(task: PrefixTask) -> list[str]:
    """Lines of the table: each part with its class, its parameters, and how many of them are trained."""
    model = task.model
    lines = [f"{'part':24} {'class':20} {'parameters':>14} {'trained':>14}"]
    rows: list[tuple[str, Any]] = [(f"{n} encoder", model.encoder(n)) for n in model.encoders]
    for n, mapper in model.mappers.items():
        inside = mapper.mappers if isinstance(mapper, Parallel) else []
        rows += [(f"{n} mapper", mapper), *((f"{n} mapper, part {i}", part) for i, part in enumerate(inside, start=1))]
    rows += [] if model.task_prefix is None else [("task prefix", model.task_prefix)]
    rows += [] if model.transcriber is None else [("transcriber", model.transcriber)]
    rows += [("decoder", model.decoder), ("all", model)]
    for name, part in rows:
        count: Callable[[bool], int] = lambda trained, part=part: sum(  # noqa: E731
            p.numel() for p in part.parameters() if p.requires_grad or not trained
        )
        lines.append(f"{name:24} {type(part).__name__:20} {count(False):14,} {count(True):14,}")
    return lines


class RunConsole(Callback):
    """Callback that shows model, data and folder at the start of a fit, a line each epoch, and the last checkpoint."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.started = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show parts with their sizes, numbers of examples, and the folder of the run."""
        if not trainer.is_global_zero or not isinstance(pl_module, PrefixTask):
            return
        for line in parameter_table(pl_module):
            log.info(line)
        rows: dict[str, Any] = getattr(_data_module(trainer), "rows", {})
        counts = [f"{split} {len(index.examples):,}" for split, index in rows.items()]
        log.info("data: %s", ", ".join(counts) or "streamed")
        log.info("run: %s (%s holds messages of libraries)", self.folder.path, MESSAGES)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time: an epoch that a run goes on with in its middle has no other start."""
        self.started = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show epoch, steps, loss, learning rate and seconds."""
        if not trainer.is_global_zero:
            return
        epochs = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        figures = [f"epoch {trainer.current_epoch + 1}{epochs}", f"step {trainer.global_step}"]
        loss = trainer.callback_metrics.get("train/loss")
        figures += [] if loss is None else [f"train/loss {float(loss):.3f}"]
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        figures += [f"lr {rates[0]:.2e}"] if rates else []
        log.info("%s, %.0f s", ", ".join(figures), time.monotonic() - self.started)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show where the last checkpoint is."""
        if trainer.is_global_zero and self.folder.last.is_file():
            log.info("last checkpoint: %s", self.folder.last)


def _data_module(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)  # set by a connector, not declared by Trainer
