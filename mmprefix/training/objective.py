"""Objective of a training: the loss of a step, where that is not the likelihood of the captions alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from mmprefix.model import PrefixLM
from mmprefix.types import Batch


class Objective(ABC):
    """Base of objectives; a recipe names one as ``model.objective``."""

    def begin(self, model: PrefixLM) -> None:  # noqa: B027 (most need nothing)
        """Look at the model before the first step, in a run that is resumed too; nothing by default."""

    @abstractmethod
    def loss(self, model: PrefixLM, batch: Batch, smoothing: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a step, and figures for the log by name; ``smoothing`` is the recipe's ``label_smoothing``."""
