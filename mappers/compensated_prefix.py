"""LAE's calibrated prefix: keys and values of a prefix whose own weights sum to one, however little they would get.

A Unified Continual Learning Framework with General Parameter-Efficient Tuning (LAE; Gao et al. 2023),
https://arxiv.org/abs/2303.10070, and its code (https://github.com/gqk/LAE): a prefix stands in a layer's softmax, where
it gets the share l of the weights; then the weights of its positions are divided by their sum l, for with a small share
it learns more slowly than an adapter or LoRA does. So out = (1 - l) * attention + softmax(q k) v over the prefix alone.
In the paper 10 positions in the first 5 of 12 blocks of a ViT, drawn from U(0, 0.01).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.kv_cache.side_terms import AddedTerm, AttentionCall, JointTerm
from mmprefix.mappers.base import Sizes, need_length
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.started import Started
from mmprefix.mappers.starts import Start
from mmprefix.types import Features, Prefix, SidePrefix


@dataclass(frozen=True)
class PrefixShare(JointTerm):
    """Keys and values (B L' H P K) in the softmax of the first L' layers."""

    keys: Tensor
    values: Tensor

    def mass(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor] | None:
        """Sums over the keys and values."""
        if call.layer >= self.keys.shape[1]:
            return None
        keys, values = (call.for_queries(part[:, call.layer]).float() for part in (self.keys, self.values))
        scores = call.scores(call.queries.float(), keys)
        highest = scores.amax(-1)
        weights = (scores - highest[..., None]).exp()
        return weights @ values, weights.sum(-1), highest


@dataclass(frozen=True)
class Compensation(AddedTerm):
    """Rest of the weights of a ``PrefixShare``, so that they sum to one: (1 - l) * softmax(q k) v."""

    keys: Tensor
    values: Tensor

    def added(self, call: AttentionCall) -> Tensor | None:
        """Attention over the prefix alone, times what its share l lacks to one."""
        if call.layer >= self.keys.shape[1]:
            return None
        keys, values = (call.for_queries(part[:, call.layer]).float() for part in (self.keys, self.values))
        scores = call.scores(call.queries.float(), keys)
        lacking = (call.masked_scores().float().logsumexp(-1) - scores.logsumexp(-1)).sigmoid()
        return lacking[..., None] * (scores.softmax(-1) @ values)


class CompensatedPrefix(Started):
    """``length`` learned keys and values for the first layers and all heads, with weights that sum to one.

    Args:
        length: positions of the prefix.
        layers: how many layers have it; None: all.
        std: standard deviation of keys and values before training.
        start: what they are before training: a text, or a part of ``mmprefix.mappers.starts``. None: random numbers.
    """

    leaves = "terms of attention"
    begun = "key_values"

    def __init__(
        self,
        sizes: Sizes,
        *,
        length: int = 10,
        layers: int | None = None,
        std: float = 0.02,
        start: str | Start | None = None,
    ) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.set_start(start, std)
        count = sizes.layers if layers is None else layers
        if not 0 < count <= sizes.layers:
            raise InputError(
                f"CompensatedPrefix.layers {layers}: the decoder has {sizes.layers}; give a number from 1 up to that"
            )
        table = self.by_layer(self.origin.numbers(length, self.numbers))
        self.key_values = nn.Parameter(table[:, :count].contiguous())

    def take(self, reader: TextReader) -> None:
        """Begin keys and values as the start."""
        table = self.by_layer(self.origin.vectors(reader, self.sizes, self.key_values.shape[3]))
        self.key_values.copy_(table[:, : self.key_values.shape[1]])

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> SidePrefix:
        """Features of B inputs, of which only B counts → keys and values beside the cache."""
        keys, values = self.key_values[:, None]
        empty = Prefix.empty(len(features.mask), self.sizes.width, features.mask.device)
        return SidePrefix(empty, (PrefixShare(keys, values), Compensation(keys, values)))
