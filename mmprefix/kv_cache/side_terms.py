"""Terms of attention beside the key-value cache: their contract, and those that several methods share.

``mmprefix.kv_cache.side_attention`` runs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from mmprefix.types import Tensors


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention: queries (B H' N K), keys and values (B H T K); H' is a multiple of H.

    Scores are products of queries and keys times ``scale``, bent by ``softcap`` (Gemma 2) where there is one, plus
    ``mask`` (B 1 N T). ``layer`` is the layer's number, ``hidden`` (B N E) what its attention reads,
    ``sinks`` what its softmax has beside keys (GPT-OSS).
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float
    softcap: float | None
    mask: Tensor | None = None
    layer: int = 0
    hidden: Tensor | None = None
    sinks: Tensor | None = None

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Queries (... N K), keys (... T K) → attention scores (... N T) before any mask."""
        scores = queries @ keys.transpose(-1, -2) * self.scale
        return scores if self.softcap is None else (scores / self.softcap).tanh() * self.softcap

    def for_queries(self, heads: Tensor) -> Tensor:
        """Keys or values of the key-value heads (... H P K), repeated for the query heads (... H' P K)."""
        group = self.queries.shape[1] // self.keys.shape[1]
        return heads.repeat_interleave(group, -3) if group > 1 else heads

    def masked_scores(self) -> Tensor:
        """Scores (B H' N T) of the layer's own keys, mask included."""
        scores = self.scores(self.queries, self.for_queries(self.keys))
        return scores if self.mask is None else scores + self.mask[..., : self.keys.shape[2]]


Layers = tuple[tuple[Tensor, Tensor], ...]
ProjectTokens = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(layer, vectors (B P E)) → keys and values (B H P K) by the layer's own projections, without rotary positions."""


@dataclass(frozen=True)
class SideTerm(Tensors):
    """Term of the layers' attention that stands in no cache: every token that is run meets it.

    Every tensor has the inputs as its first dimension: B, or 1 for all of them alike. ``active`` (B, True) are the rows
    in which the term counts; None: all. A subclass is an ``AddedTerm``, a ``JointTerm``, or one that ``bind`` replaces
    by such.
    """

    active: Tensor | None = field(default=None, kw_only=True)

    def bind(self, project: ProjectTokens) -> SideTerm:
        """Term with what a decoder's weights make of it, computed once for all tokens that follow."""
        return self

    def select(self, rows: Tensor) -> Self:
        """Term of the inputs ``rows`` (B',), in that order."""
        return self._tensors(lambda tensor: tensor[rows] if len(tensor) > 1 else tensor)

    def cast(self, dtype: torch.dtype) -> Self:
        """Copy with its numbers in ``dtype``."""
        return self._tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def mask_rows(self, rows: Tensor) -> Self:
        """Copy that does not count in the ``rows`` (B, True) of absent inputs."""
        return replace(self, active=~rows if self.active is None else self.active & ~rows)

    def _tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **cast("dict[str, Any]", changed))


@dataclass(frozen=True)
class AddedTerm(SideTerm, ABC):
    """Term that is added to a layer's attention, beside its softmax."""

    @abstractmethod
    def added(self, call: AttentionCall) -> Tensor | None:
        """Tensor to add to the attention of each query, (B H' N K), before the output projection; None: nothing."""


@dataclass(frozen=True)
class JointTerm(SideTerm, ABC):
    """Term that takes part in a layer's softmax."""

    @abstractmethod
    def mass(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor] | None:
        """Weighted sum of values (B H' N K), sum of weights (B H' N), and the logarithm (B H' N) of a factor of both.

        In float32. None: nothing in this layer.
        """


@dataclass(frozen=True)
class GatedKeyValues(AddedTerm):
    """Softmax over keys and values of its own (B L' H P K), times a gate (B L' H'), in L' layers from ``first`` on."""

    keys: Tensor
    values: Tensor
    gate: Tensor
    first: int = 0

    def added(self, call: AttentionCall) -> Tensor | None:
        """Gate times attention over the term's own keys, (B H' N K)."""
        index = call.layer - self.first
        if not 0 <= index < self.gate.shape[1]:
            return None
        keys, values = (call.for_queries(part[:, index]) for part in (self.keys, self.values))
        weights = call.scores(call.queries, keys.to(call.queries.dtype)).float().softmax(-1).to(call.queries.dtype)
        return self.gate[:, index, :, None, None] * (weights @ values.to(call.queries.dtype))


@dataclass(frozen=True)
class GatedTokens(SideTerm):
    """Vectors (B L' P E), or (B 1 P E) for all layers, that become ``GatedKeyValues`` by each layer's own projections.

    Their keys carry no rotary positions.
    """

    vectors: Tensor
    gate: Tensor  # (B L' H')
    first: int = 0

    def bind(self, project: ProjectTokens) -> SideTerm:
        """Keys and values of the vectors in L' layers from ``first`` on."""
        layers, each = self.gate.shape[1], self.vectors.shape[1] > 1
        pairs = [project(self.first + n, self.vectors[:, n if each else 0]) for n in range(layers)]
        keys, values = (torch.stack(part, dim=1) for part in zip(*pairs, strict=True))
        return GatedKeyValues(keys, values, self.gate, self.first, active=self.active)


@dataclass(frozen=True)
class CrossKeyValues(SideTerm):
    """Keys and values (B L H P K) before those of the frames that a decoder's cross-attention reads.

    They join the decoder's memory (``joined``), so that no run has to know of them.
    """

    keys: Tensor
    values: Tensor

    def joined(self, layers: Layers, mask: Tensor) -> tuple[Layers, Tensor]:
        """L pairs of keys and values (B H T K) of a memory, and its mask (B T) → the same with the term's before."""
        count, real = len(mask), mask.new_ones(len(mask), self.keys.shape[3])

        def longer(own: Tensor, frames: Tensor) -> Tensor:
            return torch.cat([own.to(frames.dtype).expand(count, -1, -1, -1), frames], dim=2)

        pairs = [
            (longer(self.keys[:, n], keys), longer(self.values[:, n], values))
            for n, (keys, values) in enumerate(layers)
        ]
        real = real if self.active is None else real & self.active[:, None]
        return tuple(pairs), torch.cat([real, mask], dim=1)
