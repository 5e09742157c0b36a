"""Training of LAE's two experts; see ``mmprefix.mappers.online_offline``.

A Unified Continual Learning Framework with General Parameter-Efficient Tuning (Gao et al. 2023),
https://arxiv.org/abs/2303.10070
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from mmprefix.errors import InputError
from mmprefix.mappers.online_offline import OnlineOffline


class FollowOnline(Callback):
    """Callback that lets every offline expert follow its online one; name the task before as ``model.start_from``.

    In the first task the offline expert is the online one (chosen here); from the second task on it follows step by
    step. A run that is resumed goes on with its task.

    Args:
        frozen: share of the epochs at the begin of the second and later tasks in which the online expert stays, so that
            what else is trained adapts first (a head, another mapper). The paper's is 0.6; a model that trains nothing
            else has nothing to adapt: 0.
    """

    def __init__(self, frozen: float = 0.0) -> None:
        if not 0 <= frozen < 1:
            raise InputError(f"FollowOnline.frozen {frozen}: give a share of the epochs from 0 on, below 1")
        self.frozen, self.begun, self._step = frozen, False, -1

    def state_dict(self) -> dict[str, Any]:
        """True once the task is counted."""
        return {"begun": self.begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the task of the checkpoint."""
        self.begun = state_dict["begun"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the task; InputError where the model has no experts, or they or the run cannot do what is asked."""
        if not _experts(pl_module):
            raise InputError("FollowOnline: the model has no mmprefix.mappers.online_offline.OnlineOffline; use one")
        if self.frozen and (trainer.max_epochs or 0) < 1:
            raise InputError(
                f"FollowOnline.frozen {self.frozen}: is a share of the epochs, and this run has no number of them; "
                "give trainer.max_epochs"
            )
        for part in _experts(pl_module):
            part.require_precision()
        for part in _experts(pl_module):
            part.tasks += not self.begun
            if int(part.tasks) == 1:
                part.follow(0.0)
        self.begun, self._step = True, trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keep the optimizer from the online experts in the first epochs of a later task."""
        if self.frozen and trainer.current_epoch < self.frozen * (trainer.max_epochs or 0):
            for part in _experts(pl_module):
                if int(part.tasks) > 1:
                    part.mapper.zero_grad(set_to_none=True)

    def on_train_batch_end(  # noqa: PLR0917 (Lightning's hook)
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow, once a step of the optimizer."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            for part in _experts(pl_module):
                part.follow(None if int(part.tasks) > 1 else 0.0)


def _experts(module: LightningModule) -> list[OnlineOffline]:
    return [part for part in module.modules() if isinstance(part, OnlineOffline)]
