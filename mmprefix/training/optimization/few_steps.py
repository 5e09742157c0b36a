"""Plain words at the beginning of a training that is too short to teach a mapper anything."""

from __future__ import annotations

import logging
import math

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)
FEW, ENOUGH = 50, 200  # steps below which a run is warned, and steps that the warning leads to (chosen here)


class FewSteps(Callback):
    """Callback that warns at the first step where the training has fewer than ``few`` steps in all.

    Args:
        few: steps below which it warns.
    """

    def __init__(self, few: int = FEW) -> None:
        self.few = few

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many steps there will be, and which options make them enough; a stream has -1, which nobody knows."""
        steps = trainer.estimated_stepping_batches
        if not getattr(trainer, "fast_dev_run", False) and 0 < steps < self.few:
            log.warning("%s", few_steps(int(steps), None if steps == trainer.max_steps else trainer.max_epochs))


def few_steps(steps: int, epochs: int | None) -> str:
    """Sentence on a training of ``steps`` steps in ``epochs`` (None, -1: not bounded) passes over the data."""
    lead = f"this training has {steps} step{'s' * (steps != 1)} in all, too few for a mapper to learn what its input is"
    if epochs is None or epochs < 1:
        return f"{lead}; give --trainer.max_steps {ENOUGH} or more"
    needed = math.ceil(ENOUGH * epochs / steps)
    return f"{lead}; give --trainer.max_epochs {needed} for {ENOUGH} steps, or a smaller --data.batch_size too"
