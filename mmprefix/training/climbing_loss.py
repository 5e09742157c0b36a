"""Plain words when a training's loss climbs: a run that goes wrong in its first minute need not run to its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.training.optimization.few_steps import FewSteps

log = logging.getLogger(__name__)


def warning_callbacks() -> list[Callback]:
    """Callbacks of every fit that say in plain words what goes wrong in it."""
    return [FewSteps(), ClimbingLoss()]


class ClimbingLoss(Callback):
    """Callback that warns once when the mean loss of ``window`` steps is far above the lowest such mean before.

    Far above means by a tenth, and by more than batches differ among themselves (three standard errors). It reads the
    losses once for each window, so that a GPU is not waited for at every step.

    Args:
        window: steps whose losses are averaged, at least 2.
    """

    def __init__(self, window: int = 10) -> None:
        if window < 2:
            raise InputError(f"ClimbingLoss.window {window}: give a number from 2 on")
        self.window = window
        self.losses: list[Tensor] = []
        self.lowest: tuple[int, float] | None = None  # last step of the lowest window, and its mean
        self.warned = False

    def on_train_batch_end(  # noqa: PLR0917 (Lightning's hook)
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the loss of this step; compare when a window is full."""
        if self.warned or not isinstance(outputs, Mapping):
            return
        self.losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if len(self.losses) < self.window:
            return
        losses, step = torch.stack(self.losses).float().cpu(), trainer.global_step
        self.losses.clear()
        if self.climbs(losses, step) and self.lowest is not None:
            self.warned = True
            log.warning(
                "the loss climbs: %.2f up to step %d, %.2f up to step %d, at a learning rate of %.3g; a lower rate "
                "(model.optimizer's lr) or a longer warm-up (model.warmup, in steps) would help",
                self.lowest[1], self.lowest[0], losses.mean().item(), step, trainer.optimizers[0].param_groups[0]["lr"],
            )  # fmt: skip

    def climbs(self, losses: Tensor, step: int) -> bool:
        """Compare the losses (N,) of a window that ends at ``step`` with the lowest window, which they may become."""
        mean = losses.mean().item()
        if self.lowest is None or mean < self.lowest[1]:
            self.lowest = step, mean
            return False
        error = losses.std().item() / len(losses) ** 0.5
        return not mean <= self.lowest[1] + max(0.1 * self.lowest[1], 3 * error)  # no number: it climbs too
