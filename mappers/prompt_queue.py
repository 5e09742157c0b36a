"""Prompt queue for lifelong learning: a prompt for each of the last tasks, reweighted for the task at hand.

After Q-Tuning: Queue-based Prompt Tuning for Lifelong Few-shot Language Learning (Guo et al. 2024),
https://arxiv.org/abs/2404.14607, of which this is known: a queue of the tasks' prompts, a matrix of low rank that
reweights them, eviction by principal components when the queue is full, a prefix that all tasks share. Its formulas
were not found. Chosen here: past prompts times (1 + A B) number by number; the prompt that explains least of the
variance leaves; no regularisation of what the shared prefix forgets.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.starts import Start
from mmprefix.mappers.task_prompt import TaskPrompt

EXPLAINED = 0.9
"""Share of the queue's variance whose principal components count when a prompt is to leave."""


class PromptQueue(TaskPrompt):
    """Shared embeddings (S E), the reweighted prompts of past tasks (N P E), then this task's (P E).

    ``mmprefix.training.methods.prompt_queue.NextTask`` puts the last task's prompt into the queue when a training
    begins from its saved model. Which task an input is of must be known: each has a saved model of its own.

    Args:
        length: positions of a task's prompt.
        shared: positions that all tasks share; they are trained in every task.
        capacity: past tasks in the queue, at most.
        rank: of the matrix that reweights past prompts.
        keep: a saved model holds the queue, so that a next task can begin from it; False: one table of embeddings.
        std: standard deviation of a prompt before training.
        start: what the first task's prompt is instead: a text, or a part of ``mmprefix.mappers.starts``.
    """

    first: ClassVar[str] = "own"
    past: Tensor
    count: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        shared: int = 4,
        capacity: int = 5,
        rank: int = 1,
        keep: bool = True,
        std: float = 0.02,
        start: str | Start | None = None,
    ) -> None:
        super().__init__(sizes, length=length, std=std, start=start)
        for name, value, least in (("shared", shared, 0), ("capacity", capacity, 1), ("rank", rank, 1)):
            if value < least:
                raise InputError(f"PromptQueue.{name} {value}: give a number from {least} on")
        self.keep, self.std = keep, std
        self.own = nn.Parameter(self.origin.numbers(length, sizes.width))
        self.shared = nn.Parameter(torch.randn(shared, sizes.width) * std)
        self.register_buffer("past", torch.zeros(capacity, length, sizes.width))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.left = nn.Parameter(torch.zeros(capacity * length, rank))
        self.right = nn.Parameter(torch.randn(rank, sizes.width))

    def take(self, embeds: Tensor) -> None:
        """Begin this task's prompt as these ``embeds`` (P E)."""
        self.own.copy_(embeds)

    def embeddings(self) -> Tensor:
        """Embeddings (S+N*P+P E) as they are now."""
        used = int(self.count) * self.length
        weights = 1 + self.left[:used] @ self.right
        return torch.cat([self.shared, self.past.flatten(0, 1)[:used] * weights, self.own])

    @property
    def growth(self) -> int:
        """Positions of the prompts that the queue still has room for."""
        return (len(self.past) - int(self.count)) * self.length

    @torch.no_grad()
    def next_task(self) -> int | None:
        """Put this task's prompt into the queue and begin the next; number of the prompt that left (N: the new one).

        The new prompt is drawn at random and past prompts get their plain weights; the shared prefix stays.
        """
        count, leaves = int(self.count), None
        queue = torch.cat([self.past[:count], self.own[None]])
        if len(queue) > len(self.past):
            leaves = least_explaining(queue.flatten(1), EXPLAINED)
            queue = queue[[n for n in range(len(queue)) if n != leaves]]
        self.past[: len(queue)] = queue
        self.count.fill_(len(queue))
        self.left.zero_()
        self.right.normal_()
        self.own.normal_(std=self.std)
        return leaves

    def merged(self) -> Mapper:
        """Itself with its queue, or one table where it does not ``keep`` it."""
        return self if self.keep else super().merged()


def least_explaining(rows: Tensor, share: float) -> int:
    """Row (N n) with the least square in the first principal components, which explain ``share`` of the variance."""
    parts: tuple[Tensor, Tensor, Tensor] = cast(Any, torch.linalg).svd(rows - rows.mean(0), full_matrices=False)
    scores, sizes, _ = parts
    variance = sizes.square()
    components = int((variance.cumsum(0) / variance.sum().clamp(min=1e-12) < share - 1e-6).sum()) + 1
    return int((scores * sizes)[:, :components].square().sum(1).argmin())
