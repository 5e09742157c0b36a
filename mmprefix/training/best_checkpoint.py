"""The best state of a training by a figure of its validations, and the end of one that gets no better."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mmprefix.errors import InputError, require_one_of

log = logging.getLogger(__name__)

_SMALL_IS_GOOD = ("loss", "eer", "wer", "cer", "error")


class BestCheckpoint(Checkpoint):
    """Callback that keeps the state of the best validation in ``file``, and may end the training early.

    Args:
        file: the checkpoint; written whole or not at all.
        monitor: the figure, as it is logged: val/loss, val/cider_d ...
        mode: "min" or "max"; None: by the figure's name.
        patience: end the training after so many validations without a better figure; None: never.
    """

    def __init__(
        self, file: Path, *, monitor: str = "val/loss", mode: str | None = None, patience: int | None = None
    ) -> None:
        if patience is not None and patience < 1:
            raise InputError(f"patience {patience}: give a number of validations from 1 on, or null")
        mode = mode or ("min" if monitor.rsplit("/", 1)[-1].startswith(_SMALL_IS_GOOD) else "max")
        require_one_of("monitor_mode", mode, ("min", "max"))
        self.file, self.monitor, self.mode, self.patience = file, monitor, mode, patience
        self.value: float | None = None
        self.step, self.waited = 0, 0
        self.figures: dict[str, float] = {}  # of the best validation
        self.samples: list[dict[str, str]] = []  # captions of the best validation
        self.latest: dict[str, float] = {}  # of the last one

    def state_dict(self) -> dict[str, Any]:
        """Best and last figures, and the number of validations since the best."""
        names = ("monitor", "mode", "value", "step", "waited", "figures", "samples", "latest")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best of the resumed run, if it was chosen by the same figure."""
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            for name, value in state_dict.items():
                setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget a best state that is not in this run's folder; do not go on with a run that patience had ended."""
        if not self.file.exists():
            self.value, self.figures = None, {}
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the validation with the best one."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if not figures:
            return
        if self.monitor not in figures:
            raise InputError(f"monitor {self.monitor}: this validation has no such figure; it has {', '.join(figures)}")
        self.latest, self.waited = figures, self.waited + 1
        if self._is_better(figures[self.monitor]):
            self.value, self.step = figures[self.monitor], trainer.global_step
            self.figures, self.waited = figures, 0
            self.samples = getattr(pl_module, "samples", [])
            trainer.save_checkpoint(self.file, weights_only=False)
        if self.patience is not None and self.waited >= self.patience:
            log.info(
                "stops early: %s was not better than %.4f for %d validations", self.monitor, self.value, self.waited
            )
            trainer.should_stop = True

    def _is_better(self, value: float) -> bool:
        if value != value:  # NaN is never better
            return False
        return self.value is None or (value < self.value if self.mode == "min" else value > self.value)
