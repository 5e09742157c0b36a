"""Training loop of the programs that train small frozen parts: a model, a loss and batches go in.

Lightning runs the steps. A program adds the optimizer with its schedule, and callbacks: averaged weights, log lines, or
`lightning.pytorch.callbacks.LambdaCallback` for a measurement between steps. Nothing is written to disk.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
Losses = Mapping[str, Tensor]
"""The ``loss`` that a step goes down, and others only to be logged, detached; each a scalar."""


def train(
    model: nn.Module,
    loss: Callable[[T], Tensor | Losses],
    batches: Iterable[T],
    *,
    steps: int,
    schedule: LRScheduler,
    max_norm: float | None = None,
    callbacks: Sequence[Callback] = (),
    accelerator: str = "cpu",
) -> None:
    """Train ``model`` in place on the first ``steps`` of ``batches``; it ends in eval mode and on the CPU.

    ``loss`` maps a batch, which may be anything, to a scalar with a graph or to ``Losses``; it moves to the model's
    device what it needs. ``schedule`` and its optimizer step after each batch, gradients cut to ``max_norm`` before.
    A batch is drawn only when the step before it is over, and the loop draws no random numbers of its own. On a GPU
    (``accelerator="cuda"``) losses are computed under autocast to bfloat16.
    """
    model.train()
    with _quiet_lightning():
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            precision="32-true" if accelerator == "cpu" else "bf16-mixed",
            max_epochs=1,
            limit_train_batches=steps,  # with a known number, Lightning draws no batch ahead
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(_Step(model, loss, schedule, max_norm), iter(batches))
    model.eval()


class AveragedWeights(Callback, Generic[M]):
    """Exponential moving average of a module's parameters and buffers; the module ends as its ``average``.

    After n updates a step keeps ``keep`` of the average, but no more than (1 + n) / (10 + n), so that the first weights
    are soon forgotten. ``updates`` are counted as done before the first step. Integer buffers are copied.
    """

    def __init__(self, module: M, keep: float, updates: int = 0) -> None:
        self.module, self.keep, self.updates = module, keep, updates
        self.average = copy.deepcopy(module).eval()

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        keep = min(self.keep, (1 + self.updates) / (10 + self.updates))
        for mean, new in zip(_tensors(self.average), _tensors(self.module), strict=True):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - keep)
            else:
                mean.copy_(new)
        self.updates += 1

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.module.load_state_dict(self.average.state_dict())


class LogLines(Callback):
    """Log lines: after each step ``line(step, losses, seconds)``, if not None; steps count from 0."""

    def __init__(self, logger: logging.Logger, line: Callable[[int, Losses, float], str | None]) -> None:
        self.logger, self.line = logger, line
        self.step, self.began = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        text = self.line(self.step, outputs, time.monotonic() - self.began)
        if text is not None:
            self.logger.info("%s", text)
        self.step += 1


def every_hundred(steps: int, name: str = "") -> Callable[[int, Losses, float], str | None]:
    """Make the ``line`` of ``LogLines``: the loss of every hundredth of ``steps``, and of the last, behind ``name``."""

    def line(step: int, losses: Losses, seconds: float) -> str | None:
        if step % 100 and step != steps - 1:
            return None
        return f"{name}step {step:5d}/{steps}  loss {losses['loss'].item():.3f}  {seconds:.0f} s"

    return line


class JoinedOptimizer(Optimizer):
    """Several optimizers that step as one, each with parameter groups of its own; a schedule sees all groups."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for each in optimizers for group in each.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each, after ``closure``, whose loss is returned."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for each in self.optimizers:
            each.step()
        return loss


class _Step(LightningModule):
    """One step of training as Lightning asks for it."""

    def __init__(
        self, model: nn.Module, loss: Callable[[Any], Tensor | Losses], schedule: LRScheduler, max_norm: float | None
    ) -> None:
        super().__init__()
        self.model, self.loss, self.schedule, self.max_norm = model, loss, schedule, max_norm

    def training_step(self, batch: Any) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return {
            "optimizer": self.schedule.optimizer,
            "lr_scheduler": {"scheduler": self.schedule, "interval": "step"},
        }

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        if self.max_norm is not None:  # the norm is summed in the model's order, not in that of the optimizer's groups
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # Lightning would take a list of scenes apart in search of tensors


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's remarks on unused devices, on a run that ends as planned, and on its own use of PyTorch."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in ("GPU available but not used", ".*LeafSpec"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        log.setLevel(level)
