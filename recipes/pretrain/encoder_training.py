"""Training of small encoders by classes or tags that a linear layer reads off their summaries; weights are averaged."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.recipes.pretrain.loop import AveragedWeights, LogLines, Losses, train

log = logging.getLogger("pretrain_encoder")


@dataclass(frozen=True)
class EncoderPlan:
    """Training settings; the learning rate warms up for a tenth of the steps and falls along a cosine."""

    epochs: int = 100
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.4
    average: float = 0.99  # share of the averaged weights that a step keeps
    seed: int = 0


@dataclass
class EncoderTask:
    """Network to train, targets (N C) of all inputs of the manifest, and the functions that read inputs by index."""

    network: nn.Module
    targets: Tensor
    exclusive: bool  # one class of C, or any number of C tags
    draw: Callable[[Sequence[int]], tuple[Tensor, Tensor]]  # indices → summaries (B G) of varied inputs, targets (B C)
    read: Callable[[int], Tensor]  # index → summary (1 G) of the input as it is


def fit(task: EncoderTask, inputs: Sequence[int], plan: EncoderPlan) -> nn.Linear:
    """Train ``task.network`` in place on ``inputs``, with the classifier that is returned; both end as averages."""
    torch.manual_seed(plan.seed)
    with torch.no_grad():
        width = task.read(inputs[0]).shape[1]
    head = nn.Linear(width, task.targets.shape[1])
    model = nn.ModuleList([task.network, head])
    per_epoch = max(1, len(inputs) // plan.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), plan.lr, weight_decay=plan.weight_decay)
    steps = plan.epochs * per_epoch

    def loss(indices: Sequence[int]) -> Tensor:
        summary, targets = task.draw(indices)
        logits = head(F.dropout(summary, plan.dropout))
        if task.exclusive:
            return F.cross_entropy(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, targets)

    def line(step: int, losses: Losses, seconds: float) -> str | None:
        epoch, left = divmod(step + 1, per_epoch)
        if left or epoch % 10:
            return None
        return f"epoch {epoch}/{plan.epochs}  loss {losses['loss'].item():.3f}  {seconds:.0f} s"

    train(
        model,
        loss,
        _batches(inputs, plan, per_epoch),
        steps=steps,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, steps, pct_start=0.1),
        callbacks=[AveragedWeights(model, plan.average), LogLines(log, line)],
    )
    return head


def _batches(inputs: Sequence[int], plan: EncoderPlan, per_epoch: int) -> Iterator[list[int]]:
    """Batches of indices, epoch after epoch in another order; inputs that fill no batch are left out of an epoch."""
    order = random.Random(plan.seed)
    for _ in range(plan.epochs):
        shuffled = order.sample(list(inputs), len(inputs))
        for step in range(per_epoch):
            yield shuffled[step * plan.batch_size :][: plan.batch_size]


@torch.no_grad()
def measure(task: EncoderTask, head: nn.Linear, inputs: Sequence[int]) -> float:
    """Accuracy of the class, or mean average precision over the tags that occur, on ``inputs`` as they are."""
    logits = torch.cat([head(task.read(index)) for index in inputs])
    targets = task.targets[list(inputs)]
    if task.exclusive:
        return (logits.argmax(1) == targets.argmax(1)).float().mean().item()
    ranked = targets.gather(0, logits.argsort(0, descending=True))  # (N C), best first
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)[:, None]
    occurs = ranked.sum(0) > 0
    return ((precision * ranked).sum(0)[occurs] / ranked.sum(0)[occurs]).mean().item()
