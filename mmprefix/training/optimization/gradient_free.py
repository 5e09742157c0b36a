"""Steps of optimizers that read the loss alone: no graph is built, and nothing is computed on the way back.

Such an optimizer has ``reads_loss = True``, and calls the closure of its ``step`` once for each set of parameters that
it tries. Every call of a step sees the same batch with the same random numbers (dropout, hidden inputs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.training.rng_state import restore_rng_state, rng_state

Closure = Callable[[], Any]  # → the loss of the batch, a number or a tensor of one


def reads_loss(optimizer: Any) -> bool:
    """True if ``optimizer`` needs losses and no gradients; it may be wrapped by Lightning."""
    return bool(getattr(getattr(optimizer, "optimizer", optimizer), "reads_loss", False))


def loss_of(closure: Closure | None, name: str) -> float:
    """Loss that ``closure`` computes. Raises InputError where an optimizer ``name`` has none, or it is no number."""
    if closure is None:
        raise InputError(f"{name}.step: reads the loss; give it a closure that computes it")
    loss = float(closure())
    if loss != loss:
        raise InputError(f"{name}: the loss is NaN; lower its rate, or what it moves the parameters by")
    return loss


class GradientFreeSteps(LightningModule):
    """LightningModule whose optimizer may read the loss alone (``reads_loss``); with any other nothing is changed."""

    @property
    def gradient_free(self) -> bool:
        """True if the optimizer of this run reads no gradients, so that a step needs no graph."""
        return any(map(reads_loss, self.trainer.optimizers))

    def require_own_batches(self) -> None:
        """Refuse batches that are added up by their gradients, where there are none."""
        if self.gradient_free and self.trainer.accumulate_grad_batches > 1:
            count = self.trainer.accumulate_grad_batches
            raise InputError(f"trainer.accumulate_grad_batches {count}: this optimizer reads no gradients; raise "
                             "data.batch_size instead, which costs no graph")  # fmt: skip

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients, unless the optimizer reads none."""
        if not self.gradient_free:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step of ``optimizer``; one that reads the loss gets a closure that it can call again, the same each time.

        With several processes the loss is the mean of theirs, so that all of them move alike.
        """
        if not reads_loss(optimizer) or optimizer_closure is None:
            return super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        before, strategy = rng_state(), cast(Any, self.trainer.strategy)

        def closure() -> Tensor:
            restore_rng_state(before)
            return strategy.reduce(torch.as_tensor(optimizer_closure()), reduce_op="mean")

        return super().optimizer_step(epoch, batch_idx, optimizer, closure)
