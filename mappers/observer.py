"""Mappers that look at the training data before the first step, and keep what they saw."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from mmprefix.mappers.base import Mapper
from mmprefix.types import Features


class Observer(Mapper):
    """Base of mappers that are shown features of the training data before training; what they kept is saved."""

    most: ClassVar[int | None] = None  # inputs that are enough, spread over the data; None: it wants all

    @property
    @abstractmethod
    def known(self) -> bool:
        """True once it has seen what it needs."""

    @abstractmethod
    def observe(self, features: Features) -> None:
        """Take in the features of some more inputs."""

    def begin(self, word_vectors: Callable[[str], Tensor]) -> None:
        """Begin to train; ``word_vectors`` gives those of a text (N E), of the decoder."""

    def observed(self) -> str:
        """Words for what it has seen, for the log of a run."""
        return "observed"
