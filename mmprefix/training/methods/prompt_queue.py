"""Step from one task to the next of a prompt queue; see ``mmprefix.mappers.prompt_queue``.

After Q-Tuning: Queue-based Prompt Tuning for Lifelong Few-shot Language Learning (Guo et al. 2024),
https://arxiv.org/abs/2404.14607
"""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mmprefix.errors import InputError
from mmprefix.mappers.prompt_queue import PromptQueue

log = logging.getLogger(__name__)


class NextTask(Callback):
    """Callback that puts the prompt of the task before into the queue at the begin of a training.

    Name the task before as ``model.start_from``, and leave this callback out of the first task. A run that is resumed
    has done it.
    """

    def __init__(self) -> None:
        self.done = False

    def state_dict(self) -> dict[str, Any]:
        """True once the queue has the prompt."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the queue of the checkpoint."""
        self.done = state_dict["done"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next task; InputError where the model has no queue."""
        queues = [part for part in pl_module.modules() if isinstance(part, PromptQueue)]
        if not queues:
            raise InputError("NextTask: the model has no mmprefix.mappers.prompt_queue.PromptQueue; take it as prefix")
        if self.done:
            return
        for queue in queues:
            leaves = queue.next_task()
            left = "" if leaves is None else f"; number {leaves + 1} of {len(queue.past) + 1} left it"
            log.info("prompt queue: %d past tasks of at most %d%s", int(queue.count), len(queue.past), left)
        self.done = True
