"""State of a decoder after prefix and prompt: key-value cache, and the hidden state that predicts the next token.

A prefix of any kind becomes the start of the model's key-value cache. A prompt extends it for all texts that follow.
Captions in training and hypotheses in search are several texts after one state: they share a row, and a mask lets each
token attend to the state and to its own text, in one pass and without copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmprefix.kv_cache.side_terms import CrossKeyValues, SideTerm
from mmprefix.types import AnyPrefix, DeepPrefix, MixedPrefix, Prefix, split_side

Layer = tuple[Tensor, Tensor]  # keys and values (B H T K)


@dataclass(frozen=True)
class Memory:
    """Projected frames for cross-attention: L pairs of keys and values (B H T K), and their mask (B T)."""

    layers: tuple[Layer, ...]
    mask: Tensor

    def joined(self, terms: Sequence[SideTerm]) -> Memory:
        """Memory with the keys and values of those ``terms`` that stand beside frames, before its own."""
        layers, mask = self.layers, self.mask
        for term in reversed([term for term in terms if isinstance(term, CrossKeyValues)]):
            layers, mask = term.joined(layers, mask)
        return Memory(layers, mask)


@dataclass(frozen=True)
class State:
    """Key-value cache of B inputs: one entry per layer, a mask of real positions, and the last hidden state.

    ``cache`` L pairs (B H T K) · ``mask`` (B T) · ``last_hidden`` (B E), the hidden state at the last real position,
    which predicts the first token; None while no token or embedding has been run (no prefix, or a deep one), zeros for
    an input without a real position · ``memory`` if the decoder has cross-attention · ``text_updates`` of the prefix,
    which begin after ``before_text`` (B 1) real positions · ``side``: terms of attention that stand in no cache.
    """

    cache: tuple[Layer, ...]
    mask: Tensor
    last_hidden: Tensor | None
    memory: Memory | None = None
    text_updates: Tensor | None = None
    before_text: Tensor | None = None
    side: tuple[SideTerm, ...] = ()

    def with_deep(self, prefix: DeepPrefix, dtype: torch.dtype) -> State:
        """State without a cache → the state whose cache is ``prefix`` in ``dtype``."""
        layers = zip(prefix.keys.to(dtype), prefix.values.to(dtype), strict=True)
        return replace(self, cache=tuple(layers), mask=prefix.mask)

    def select(self, rows: Tensor) -> State:
        """State of the inputs ``rows``, in that order."""

        def selected(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
            return tuple((keys[rows], values[rows]) for keys, values in layers)

        memory = self.memory and Memory(selected(self.memory.layers), self.memory.mask[rows])
        last = None if self.last_hidden is None else self.last_hidden[rows]
        updates, before = (None if part is None else part[rows] for part in (self.text_updates, self.before_text))
        side = tuple(term.select(rows) for term in self.side)
        return State(selected(self.cache), self.mask[rows], last, memory, updates, before, side)

    def roll(self, by: int) -> State:
        """State with the inputs rotated by ``by`` rows, as ``torch.roll`` does."""
        return self.select(torch.arange(len(self.mask), device=self.mask.device).roll(by))

    def begin_text(self, prefix: AnyPrefix) -> State:
        """State after all of ``prefix``, whose updates are added to the embeddings of what comes next."""
        plain, _ = split_side(prefix)
        soft = plain.soft if isinstance(plain, MixedPrefix) else plain
        if not isinstance(soft, Prefix) or soft.text_updates is None:
            return self
        return replace(self, text_updates=soft.text_updates, before_text=self.mask.sum(1, keepdim=True))

    def updated(self, embeds: Tensor, position_ids: Tensor) -> Tensor:
        """Embeddings (B N E) of tokens at ``position_ids`` (B N), with the updates of their places in the text."""
        if self.text_updates is None or self.before_text is None:
            return embeds
        places, count = position_ids - self.before_text, self.text_updates.shape[1]
        index = places.clamp(0, count - 1)[..., None].expand(-1, -1, embeds.shape[-1])
        updates = self.text_updates.gather(1, index) * (places < count)[..., None]
        return embeds + updates.to(embeds.dtype)
