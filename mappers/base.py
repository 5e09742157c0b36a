"""The contract of every mapper: what an encoder found becomes a prefix. Mappers are all that is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from mmprefix.parts import Part
from mmprefix.types import Features, Prefix


class Mapper(Part, nn.Module, ABC):
    """A trained network from ``Features`` to a ``Prefix``.

    Its first three arguments are plain numbers: ``dim`` (D, width of the frames), ``pooled_dim`` (G, width of the
    summary), ``width`` (E, width of the decoder). A recipe leaves them out: they are taken from the encoder and
    the decoder. Everything after them is the mapper's own.
    """

    @abstractmethod
    def forward(self, features: Features) -> Prefix:
        """Features of B inputs → embeddings (B P E) and mask (B P)."""
