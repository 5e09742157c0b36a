"""The checkpoint that a run goes on from: by time, by steps, at the end of each epoch, and when a signal stops the run.

A resumed run ends with the bits of the uninterrupted one, validations included. So a checkpoint is taken only where the
training can be picked up exactly: after an optimizer step that no validation follows, after a validation, at the end of
an epoch, or in a validation, which the resumed run then starts again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from traceback import walk_tb
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mmprefix.errors import InputError
from mmprefix.interrupt import HeldSignals, Stopped, hold_stop_signals
from mmprefix.types import Batch


class LastCheckpoint(Checkpoint):
    """Callback that keeps the newest state of a run in ``file``, and stops the run with it on SIGTERM or SIGINT.

    Args:
        file: the checkpoint; written whole or not at all.
        minutes: write it after so many minutes; None: not by time.
        steps: write it every so many optimizer steps; None: not by steps.
        signals_only: write it only when a signal stops the run (another callback writes it otherwise).
    """

    def __init__(
        self, file: Path, *, minutes: float | None = 10.0, steps: int | None = None, signals_only: bool = False
    ) -> None:
        for name, value in (("minutes", minutes), ("steps", steps)):
            if value is not None and value <= 0:
                raise InputError(f"checkpoint_every_{name} {value}: give a number above 0, or null for none")
        self.file, self.minutes, self.steps = file, minutes, steps
        self.signals_only = signals_only
        self._signals, self._holding = HeldSignals(), ExitStack()
        self._saved_at, self._saved_step, self._due = time.monotonic(), -1, False
        self._in_validation = False  # begun, and its figures not yet there

    # ------------------------------------------------------------------------------------------------------- moments

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold signals back from now on."""
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._signals = self._holding.enter_context(hold_stop_signals())

    def on_train_batch_end(  # noqa: PLR0917 (a hook of Lightning)
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Stop or save after an optimizer step, unless a validation or the end of the epoch comes next."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # the gradients of a part of a step are in no checkpoint
            return
        self._due = self._due or self._is_due(trainer)
        fetcher = trainer.fit_loop._data_fetcher
        if loop._num_ready_batches_reached() or (fetcher is not None and loop._should_check_val_fx(fetcher)):
            return
        self._stop_if_asked(trainer)
        if self._due:
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation, which the resumed run then begins with."""
        self._in_validation = not trainer.sanity_checking
        self._stop_in_validation(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any, **more: Any) -> None:
        """Stop in a validation; processes may have different numbers of batches, and then wait for its end."""
        if trainer.world_size == 1:
            self._stop_in_validation(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Treat the validation as done from now on."""
        self._in_validation = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop or save after a validation within an epoch; one at its end is followed by ``on_train_epoch_end``."""
        if _fitting(trainer) and not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._stop_if_asked(trainer)
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of each epoch, then stop if that was asked for."""
        self._save(trainer)
        self._stop_if_asked(trainer, save=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal came since the last checkpoint; no more are held back."""
        self._stop_if_asked(trainer, save=False)
        self._holding.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Hold no more signals back."""
        with suppress(Stopped):  # the exception says why the run ends
            self._holding.close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint from within a validation say that the validation has yet to be done."""
        if self._in_validation and _fitting(trainer):
            _restart_validation(checkpoint)

    # ------------------------------------------------------------------------------------------------------ decisions

    def _is_due(self, trainer: Trainer) -> bool:
        if self.signals_only or trainer.global_step == self._saved_step:
            return False
        if self.steps is not None and trainer.global_step % self.steps == 0:
            return True
        late = self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes
        return self.minutes is not None and bool(trainer.strategy.broadcast(late))  # clocks of processes differ

    def _asked(self, trainer: Trainer) -> bool:
        """True in every process if a signal came to any."""
        return trainer.strategy.reduce_boolean_decision(self._signals.arrived is not None, all=False)

    def _stop_in_validation(self, trainer: Trainer) -> None:
        if self._in_validation and _fitting(trainer):
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer, save: bool = True) -> None:
        if not self._asked(trainer):
            return
        if save or self.signals_only:
            self._write(trainer)
        kept = f"step {trainer.global_step} is kept in {self.file}"
        raise Stopped(self._signals.arrived or signal.SIGTERM, kept)

    def _save(self, trainer: Trainer) -> None:
        if not self.signals_only:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.file, weights_only=False)
        self._saved_at, self._saved_step, self._due = time.monotonic(), trainer.global_step, False


def require_resumable(checkpoint: dict[str, Any], trainer: Trainer, file: Path | str) -> None:
    """Raise InputError for a checkpoint that is further than the run of ``trainer`` shall go, or lacks its progress."""
    try:
        loops = checkpoint["loops"]["fit_loop"]
        epochs, steps = int(loops["epoch_progress"]["current"]["ready"]), int(checkpoint["global_step"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: its progress cannot be read; it was changed after it was saved") from error
    for option, done, most, noun in (
        ("max_epochs", epochs, trainer.max_epochs, "epoch"),
        ("max_steps", steps, trainer.max_steps, "step"),
    ):
        if most is not None and 0 <= most < done:
            raise InputError(
                f"trainer.{option} {most}: the checkpoint {file} is from {noun} {done}; give {done} or more"
            )


@contextmanager
def restoring_errors_as_input_errors(file: Path | str | None) -> Generator[None, None, None]:
    """Turns what Lightning and torch raise while they restore the state in ``file`` into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        frames = [frame.f_code for frame, _ in walk_tb(error.__traceback__)]
        restoring = any(code.co_name.startswith(("restore", "_restore")) for code in frames)
        if file is None or not restoring:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file}: this run cannot go on from it ({reason})") from error


def _fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _restart_validation(checkpoint: dict[str, Any]) -> None:
    """Let Lightning's loop find its validation begun and none of its batches done: it then starts it again."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress |= {"total": dict(begun), "current": dict(begun), "is_last_batch": False}
