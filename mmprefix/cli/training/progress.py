"""Lightning's progress bar on standard error, in tqdm's plain characters: standard output is for results alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from lightning.pytorch.callbacks import Callback, ProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


def progress_bars(trainer: Any, configured: Sequence[Callback]) -> list[Callback]:
    """Bar for a Trainer with the options ``trainer``; none where it shows none or the recipe names its own."""
    own = any(isinstance(callback, ProgressBar) for callback in configured)
    return [ErrorStreamBar()] if trainer.enable_progress_bar and not own else []


class ErrorStreamBar(TQDMProgressBar):
    """Bar on standard error; Lightning names standard output where it makes one."""

    def init_sanity_tqdm(self) -> Tqdm:
        """Bar of the check before a training."""
        with redirect_stdout(sys.stderr):
            return super().init_sanity_tqdm()

    def init_train_tqdm(self) -> Tqdm:
        """Bar of an epoch."""
        with redirect_stdout(sys.stderr):
            return super().init_train_tqdm()

    def init_predict_tqdm(self) -> Tqdm:
        """Bar of a prediction."""
        with redirect_stdout(sys.stderr):
            return super().init_predict_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        """Bar of a validation."""
        with redirect_stdout(sys.stderr):
            return super().init_validation_tqdm()

    def init_test_tqdm(self) -> Tqdm:
        """Bar of a test."""
        with redirect_stdout(sys.stderr):
            return super().init_test_tqdm()
