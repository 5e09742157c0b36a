"""Combinators that look at the training data before the first step, and keep what they saw."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.mappers.combinator import Combinator
from mmprefix.types import Features


class Observer(Combinator):
    """Base of combinators that are shown features of the training data before training; what they kept is saved."""

    most: ClassVar[int | None] = None  # inputs that are enough, spread over the data; None: it wants all

    def refuse_observers(self) -> None:
        """Refuse children that observe too: they would be shown other numbers than they read."""
        for child in self.children_mappers:
            if inner := next((part for part in child.modules() if isinstance(part, Observer)), None):
                outer, name = type(self).__name__, type(inner).__name__
                raise InputError(f"{outer}: {name} inside it would read other numbers than it is shown; leave out one")

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
