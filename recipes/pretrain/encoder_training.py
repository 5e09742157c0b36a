"""The training loop of small encoders: classes or tags from summaries, with averaged weights, and what came of it."""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger("pretrain_encoder")


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train; the learning rate warms up for a tenth of the steps and falls along a cosine."""

    epochs: int = 100
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.4
    average: float = 0.99  # how much of the averaged weights a step keeps
    seed: int = 0


@dataclass
class Task:
    """What ``fit`` trains: inputs by place in the manifest, their targets (N C), and what it takes to read a batch."""

    network: nn.Module
    targets: Tensor
    exclusive: bool  # one class of C, or any number of C tags
    draw: Callable[[Sequence[int]], tuple[Tensor, Tensor]]  # places → summaries (B G) of varied inputs, targets (B C)
    read: Callable[[int], Tensor]  # place → summary (1 G) of the input as it is


def fit(task: Task, train: Sequence[int], plan: Plan) -> nn.Linear:
    """Trains ``task.network`` in place, together with the classifier that is returned; both end as their averages."""
    torch.manual_seed(plan.seed)
    order = random.Random(plan.seed)
    with torch.no_grad():
        width = task.read(train[0]).shape[1]
    head = nn.Linear(width, task.targets.shape[1])
    model = nn.ModuleList([task.network, head]).train()
    average = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), plan.lr, weight_decay=plan.weight_decay)
    steps = max(1, len(train) // plan.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.lr, plan.epochs * steps, pct_start=0.1)
    began, loss = time.monotonic(), torch.zeros(())
    for epoch in range(plan.epochs):
        places = order.sample(list(train), len(train))
        for step in range(steps):
            summary, targets = task.draw(places[step * plan.batch_size :][: plan.batch_size])
            logits = head(F.dropout(summary, plan.dropout))
            loss = (
                F.cross_entropy(logits, targets)
                if task.exclusive
                else F.binary_cross_entropy_with_logits(logits, targets)
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            done = epoch * steps + step
            _follow(average, model, min(plan.average, (1 + done) / (10 + done)))
        if epoch % 10 == 9:
            log.info("epoch %d/%d  loss %.3f  %.0f s", epoch + 1, plan.epochs, loss.item(), time.monotonic() - began)
    model.load_state_dict(average.state_dict())
    model.eval()
    return head


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    for mean, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(new, 1 - keep)
        else:
            mean.copy_(new)


@torch.no_grad()
def measure(task: Task, head: nn.Linear, places: Sequence[int]) -> float:
    """Accuracy of the class, or mean average precision over the tags that occur, on inputs as they are."""
    logits = torch.cat([head(task.read(place)) for place in places])
    targets = task.targets[list(places)]
    if task.exclusive:
        return (logits.argmax(1) == targets.argmax(1)).float().mean().item()
    found = targets.gather(0, logits.argsort(0, descending=True))  # (N C), best first
    precision = found.cumsum(0) / torch.arange(1, len(found) + 1)[:, None]
    occurs = found.sum(0) > 0
    return ((precision * found).sum(0)[occurs] / found.sum(0)[occurs]).mean().item()
