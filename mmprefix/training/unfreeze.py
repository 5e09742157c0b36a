"""Fine-tuning of an encoder in the first epochs of a training; it is saved with the mappers.

Prefix-AAC (https://arxiv.org/abs/2303.17489) does so with Cnn14: 16 epochs on AudioCaps, 30 on Clotho.
"""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mmprefix.encoders.base import EncoderMode
from mmprefix.errors import InputError
from mmprefix.training.task import PrefixTask

log = logging.getLogger(__name__)


class UnfreezeUntil(Callback):
    """Callback that trains the encoder of a branch for ``epochs`` epochs, then freezes it.

    Args:
        branch: the name of the branch.
        epochs: epochs that it is trained for; None: all.
        noisy: once frozen, it keeps dropout, input masking and batch statistics while the rest is trained, as in the
            published code; otherwise it is in evaluation mode.
    """

    def __init__(self, branch: str = "audio", epochs: int | None = None, noisy: bool = False) -> None:
        if epochs is not None and epochs < 1:
            raise InputError(f"UnfreezeUntil.epochs {epochs}: give a number from 1 on, or null for all epochs")
        self.branch, self.epochs, self.noisy = branch, epochs, noisy
        self.done = 0

    @property
    def state_key(self) -> str:
        """Key of this callback in checkpoints: one for each branch."""
        return self._generate_state_key(branch=self.branch)

    def state_dict(self) -> dict[str, Any]:
        """Epochs that are done, over all restarts: a trainer's own count may be one too high after one."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count of epochs."""
        self.done = state_dict["done"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unfreeze the encoder before the optimizer is made; elsewhere only expect its tensors in the checkpoint."""
        model = _model(pl_module)
        if self.branch not in model.encoders:
            have = ", ".join(model.encoders)
            raise InputError(f"UnfreezeUntil.branch {self.branch!r}: the branches of this model are {have}")
        encoder = model.encoder(self.branch)
        if stage == "fit":
            encoder.tune()
        else:
            encoder.set_mode(EncoderMode.TUNED)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze the encoder when its epochs are over."""
        encoder = _model(pl_module).encoder(self.branch)
        if encoder.mode is EncoderMode.LEARNING and self.epochs is not None and self.done >= self.epochs:
            encoder.set_mode(EncoderMode.NOISY if self.noisy else EncoderMode.TUNED)
            log.info("the encoder of branch %r is frozen from epoch %d on", self.branch, self.done + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch; Lightning saves its checkpoints after this."""
        self.done += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the encoder into evaluation mode: from now on it is used as it is."""
        _model(pl_module).encoder(self.branch).freeze()


def _model(module: LightningModule) -> Any:
    if not isinstance(module, PrefixTask):
        raise InputError(f"UnfreezeUntil: trains the encoder of a PrefixTask, not of a {type(module).__name__}")
    return module.model
