"""Mappers that look at the decoder or the training data before the first step, and keep what they saw."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor

from mmprefix.mappers.base import Mapper
from mmprefix.types import DeepPrefix, Features
from mmprefix.weights.source import Provenance


class TextReader(Protocol):
    """Decoder as a mapper sees it before training: what it makes of a text or of tokens."""

    identity: Provenance

    def token_ids(self, text: str) -> list[int]:
        """Token ids of ``text``, as those of a prompt."""
        ...

    def word_ids(self) -> list[int]:
        """Ids of all tokens of the vocabulary whose text has a letter, in its order, special tokens left out."""
        ...

    def token_vectors(self, ids: list[int]) -> Tensor:
        """Embeddings (N E) of tokens."""
        ...

    def token_key_values(self, ids: list[int]) -> DeepPrefix:
        """Keys and values (L 1 H N K) of tokens, as the decoder's cache holds them."""
        ...

    def word_vectors(self, text: str) -> Tensor:
        """Embeddings (N E) of the tokens of ``text``."""
        ...

    def key_values(self, text: str, positions: int) -> DeepPrefix:
        """Keys and values (L 1 H P K) of the first P ``positions`` of ``text``, which is repeated where it is short."""
        ...


class Starter(Mapper):
    """Base of mappers whose numbers before training come from the decoder; they are saved with the model."""

    @property
    @abstractmethod
    def known(self) -> bool:
        """True once it has seen what it needs."""

    @abstractmethod
    def begin(self, reader: TextReader) -> None:
        """Begin to train with what the decoder, ``reader``, makes of a text."""


class Observer(Starter):
    """Base of mappers that are shown features of the training data before training; what they kept is saved."""

    most: ClassVar[int | None] = None  # inputs that are enough, spread over the data; None: it wants all
    observes_again: ClassVar[bool] = False  # also once it is known: a training that starts from another has new rows
    inside: bool = False  # its output is read by layers of another mapper, not by the decoder

    @abstractmethod
    def observe(self, features: Features) -> None:
        """Take in the features of some more inputs."""

    def begin(self, reader: TextReader) -> None:
        """Begin to train; nothing is asked of the decoder."""

    def observed(self) -> str:
        """Words for what it has seen, for the log of a run."""
        return "observed"
