"""What a decoder has read, and the contract of every decoder: what can be done with it.

Whatever a prefix is, it becomes the start of the model's key-value cache: a ``State``, the trunk of a tree. A prompt
lengthens the trunk. Captions in training and beams in generation are branches: all branches of an input stand in one
row behind its trunk, and a mask lets each token see the trunk and its own branch. One pass, nothing copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor]  # keys and values (B H T K)


@dataclass(frozen=True)
class Memory:
    """What a decoder with cross-attention looks at beside its own text: L pairs (B H T K), and their mask (B T)."""

    layers: tuple[Layer, ...]
    mask: Tensor


@dataclass(frozen=True)
class State:
    """What a decoder has read of B inputs: a cache entry a layer, which positions are real, and the last output.

    ``cache`` L pairs (B H T K) · ``mask`` (B T) · ``last`` (B E), the hidden state after the last real position, from
    which the first token is predicted; None while no token or embedding has been run (nothing read, or a deep prefix),
    zeros for an input of which none was real.
    ``memory`` where the decoder has cross-attention.
    """

    cache: tuple[Layer, ...]
    mask: Tensor
    last_hidden: Tensor | None
    memory: Memory | None = None

    def select(self, rows: Tensor) -> State:
        """The same for some of the inputs, in another order if need be."""

        def taken(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
            return tuple((keys[rows], values[rows]) for keys, values in layers)

        memory = self.memory and Memory(taken(self.memory.layers), self.memory.mask[rows])
        last = None if self.last_hidden is None else self.last_hidden[rows]
        return State(taken(self.cache), self.mask[rows], last, memory)

    def roll(self, by: int) -> State:
        """The same, each input's in the place of the input ``by`` rows further."""
        return self.select(torch.arange(len(self.mask), device=self.mask.device).roll(by))
