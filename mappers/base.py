"""The contract of every mapper: what an encoder found becomes a prefix. Mappers are all that is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.parts import Part
from mmprefix.types import AnyPrefix, DeepPrefix, Features


class Mapper(Part, nn.Module, ABC):
    """A trained network from ``Features`` to a prefix: embeddings, or keys and values for every layer.

    Its first three arguments are plain numbers: ``dim`` (D, width of the frames), ``pooled_dim`` (G, width of the
    summary), ``width`` (E, width of the decoder). A recipe leaves them out: they are taken from the encoder and
    the decoder. Everything after them is the mapper's own.
    """

    def for_decoder(self, layers: int, heads: int, head_width: int) -> None:
        """Told the decoder's L, H and K once it is known: what reaches into its layers makes its tensors now."""

    def merged(self) -> Mapper:
        """The mapper as it is used: what does not depend on the input is computed once, and what made it is dropped."""
        return self

    @property
    def reads_frames(self) -> bool:
        """Whether it looks at the frames; where it does not, they need not be kept."""
        return True

    @abstractmethod
    def forward(self, features: Features) -> AnyPrefix:
        """Features of B inputs → embeddings (B P E) and mask (B P), or keys and values (L B H P K) and mask."""


def need_summary(mapper: Mapper, pooled_dim: int) -> None:
    """Refuses an encoder without a summary, by name."""
    if not pooled_dim:
        raise InputError(
            f"{type(mapper).__name__} reads the encoder's summary, and this encoder has none (pooled_dim=0)"
        )


def need_frames(mapper: Mapper, dim: int) -> None:
    """Refuses an encoder without frames, by name."""
    if not dim:
        raise InputError(f"{type(mapper).__name__} reads the encoder's frames, and this encoder has none (dim=0)")


def need_length(mapper: Mapper, length: int) -> None:
    """Refuses a prefix without positions."""
    if length < 1:
        raise InputError(f"{type(mapper).__name__}.length {length}: give a number from 1 on")


def all_real(embeds: Tensor) -> Tensor:
    """The mask (B P) of a prefix (B P E) in which nothing is padding."""
    return torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B N E) → (B H N K) with K = E / H."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


class DeepMapper(Mapper):
    """What both kinds share: L, H and K are the decoder's, or numbers that a saved recipe holds."""

    sizes = (0, 0, 0)  # L, H, K, once they are known

    def for_decoder(self, layers: int, heads: int, head_width: int) -> None:
        """Makes the tensors; InputError where they were made for another decoder."""
        if not any(self.sizes):
            self.sizes = layers, heads, head_width
            self.init_args |= {"layers": layers, "heads": heads, "head_width": head_width}
            self.make(2 * layers * heads * head_width)
        elif self.sizes != (layers, heads, head_width):
            raise InputError(
                f"{type(self).__name__}: is for {_say(*self.sizes)}; the decoder has {_say(layers, heads, head_width)}"
            )

    def known(self, layers: int | None, heads: int | None, head_width: int | None) -> None:
        """Takes the sizes that were given, if they were; InputError where some are missing."""
        if layers and heads and head_width:
            self.for_decoder(layers, heads, head_width)
        elif layers or heads or head_width:
            raise InputError(
                f"{type(self).__name__}: layers={layers}, heads={heads}, head_width={head_width}: leave out all three "
                "(they are the decoder's), or give all"
            )

    @abstractmethod
    def make(self, numbers: int) -> None:
        """Makes the tensors that end in the keys and values of a position, ``numbers`` = 2*L*H*K."""

    def split_layers(self, found: Tensor, mask: Tensor) -> DeepPrefix:
        """Vectors (B P 2*L*H*K), mask (B P) → keys and values (L B H P K)."""
        layers, heads, k = self.sizes
        both: Tensor = found.unflatten(2, (2, layers, heads, k)).permute(
            2, 3, 0, 4, 1, 5
        )  # (2 L B H P K) pyright: ignore
        return DeepPrefix(both[0], both[1], mask)


def _say(layers: int, heads: int, head_width: int) -> str:
    return f"{layers} layers of {heads} heads of {head_width}"
