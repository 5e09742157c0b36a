"""Meta-learned start: a prefix from which a few steps on a new user's or class's texts go far. Reptile and MAML.

Reptile: On First-Order Meta-Learning Algorithms (Nichol, Achiam, Schulman 2018), https://arxiv.org/abs/1803.02999: k
steps on a task take theta to phi, and (theta - phi) / inner rate is the gradient of theta. First-order MAML (Finn,
Abbeel, Levine 2017), https://arxiv.org/abs/1703.03400: the gradient at phi of the loss of other rows of the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mmprefix.errors import InputError, require_one_of
from mmprefix.model import PrefixLM
from mmprefix.training.methods.task_batches import rows_of
from mmprefix.training.objective import Objective
from mmprefix.types import Batch


class MetaStart(Objective):
    """Gradient by which the numbers that are trained become a good start for each of many tasks.

    The rows of one user (or of one target) in a batch are a task; use
    ``mmprefix.training.methods.task_batches.TaskBatches``. The result is saved as any other
    prefix, and adapted by a training with ``model.start_from``. The optimizer of the recipe takes the outer steps.

    Args:
        method: "reptile" or "fomaml"; the latter learns on the first half of a task's rows and looks at the others; of
            a task of one row (the rest of a user's batches) both see that row.
        by: the field that makes rows a task, "user" or "target" (for classes).
        inner_steps: steps of gradient descent on a task.
        inner_rate: their rate.
    """

    def __init__(
        self,
        *,
        method: Literal["reptile", "fomaml"] = "reptile",
        by: Literal["user", "target"] = "user",
        inner_steps: int = 5,
        inner_rate: float = 0.1,
    ) -> None:
        require_one_of("MetaStart.method", method, ("reptile", "fomaml"))
        require_one_of("MetaStart.by", by, ("user", "target"))
        if inner_steps < 1 or not inner_rate > 0:
            raise InputError(f"MetaStart: inner_steps {inner_steps}, inner_rate {inner_rate}: give numbers above 0")
        self.method, self.by, self.inner_steps, self.inner_rate = method, by, inner_steps, inner_rate

    def loss(self, model: PrefixLM, batch: Batch, smoothing: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the tasks before they are learned, with the gradient of the method; and the loss after."""
        tasks = [rows_of(batch, rows) for rows in self._tasks(batch).values()]
        parameters = [p for p in model.trained_parameters().values() if p.requires_grad]
        sums, before, after = [torch.zeros_like(p) for p in parameters], 0.0, 0.0
        for task in tasks:
            gradients, first, last = self._gradients(model, parameters, task, smoothing)
            before, after = before + first / len(tasks), after + last / len(tasks)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient / len(tasks)
        pull = torch.stack([(p * total).sum() for p, total in zip(parameters, sums, strict=True)]).sum()
        return pull - pull.detach() + before, {"adapted": torch.as_tensor(after)}

    def _gradients(
        self, model: PrefixLM, parameters: Sequence[Tensor], task: Batch, smoothing: float
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Gradient of the start by one task, and the loss of the task's looked-at rows before and after learning it."""
        half = len(task) // 2 if self.method == "fomaml" else 0
        learned = rows_of(task, range(half)) if half else task
        looked_at = rows_of(task, range(half, len(task))) if half else task
        start = [p.detach().clone() for p in parameters]
        losses: list[Tensor] = []
        if half:
            losses.append(_loss_alone(model, looked_at, smoothing))
        for _ in range(self.inner_steps):
            inner = _loss(model, learned, smoothing)
            losses.append(inner.detach())
            steps = _grad(inner, parameters)
            with torch.no_grad():
                for p, step in zip(parameters, steps, strict=True):
                    p -= self.inner_rate * step
        if self.method == "fomaml":
            loss = _loss(model, looked_at, smoothing)
            gradients = _grad(loss, parameters)
        else:
            loss = _loss_alone(model, looked_at, smoothing)
            gradients = [(s - p.detach()) / self.inner_rate for s, p in zip(start, parameters, strict=True)]
        with torch.no_grad():
            for p, own in zip(parameters, start, strict=True):
                p.copy_(own)
        return gradients, losses[0], loss.detach()

    def _tasks(self, batch: Batch) -> Mapping[str, list[int]]:
        """Rows of each task of the batch. Raises InputError for rows without a user or a target."""
        names = [row[0] for row in batch.targets if row] if self.by == "target" else list(batch.users)
        if len(names) != len(batch) or not all(names):
            raise InputError(f"MetaStart.by {self.by}: rows of this batch have none; give each row one")
        tasks: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            tasks.setdefault(name, []).append(row)
        return tasks


def _loss(model: PrefixLM, batch: Batch, smoothing: float) -> Tensor:
    return model.text_loss(batch, smoothing).mean()


@torch.no_grad()
def _loss_alone(model: PrefixLM, batch: Batch, smoothing: float) -> Tensor:
    return _loss(model, batch, smoothing)


def _grad(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
