"""A decoder's state after reading a prefix and text: keys, values, and the hidden state that predicts the next token.

A prefix of any kind becomes the start of the model's key-value cache. A prompt lengthens it for all texts that follow.
Captions in training and hypotheses in search are several texts behind one state: they stand in one row, and a mask lets
each token see the state and its own text. One pass, nothing copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor]  # keys and values (B H T K)


@dataclass(frozen=True)
class Memory:
    """Projected frames for cross-attention: L pairs of keys and values (B H T K), and their mask (B T)."""

    layers: tuple[Layer, ...]
    mask: Tensor


@dataclass(frozen=True)
class State:
    """The key-value cache of B inputs: one entry a layer, a mask of real positions, and the last hidden state.

    ``cache`` L pairs (B H T K) · ``mask`` (B T) · ``last_hidden`` (B E), the hidden state after the last real position,
    from which the first token is predicted; None while no token or embedding has been run (nothing read, or a deep
    prefix), zeros for an input of which none was real. ``memory`` where the decoder has cross-attention.
    """

    cache: tuple[Layer, ...]
    mask: Tensor
    last_hidden: Tensor | None
    memory: Memory | None = None

    def select(self, rows: Tensor) -> State:
        """The state of the inputs ``rows``, in that order."""

        def selected(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
            return tuple((keys[rows], values[rows]) for keys, values in layers)

        memory = self.memory and Memory(selected(self.memory.layers), self.memory.mask[rows])
        last = None if self.last_hidden is None else self.last_hidden[rows]
        return State(selected(self.cache), self.mask[rows], last, memory)

    def roll(self, by: int) -> State:
        """The state with each input replaced by the one ``by`` rows further."""
        return self.select(torch.arange(len(self.mask), device=self.mask.device).roll(by))
