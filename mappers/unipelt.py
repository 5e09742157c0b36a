"""UniPELT's gate: keys and values of a prefix, made smaller by a gate that each layer computes from what it reads.

UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning (Mao et al.),
https://arxiv.org/abs/2110.07577, and its code (https://github.com/morningmoni/UniPELT): in each layer
g = mean over the sequence of sigmoid(w h + b), with h the input of its attention, and the prefix's keys and values are
g k and g v in the layer's softmax. UniPELT gates an adapter and LoRA beside it; here is the prefix's part.
Differs: a causal decoder must not read later words, so each position has the gate of its own h, not of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmprefix.kv_cache.side_terms import AttentionCall, JointTerm
from mmprefix.mappers.base import Sizes, need_length
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.started import Started
from mmprefix.mappers.starts import Start
from mmprefix.types import Features, SidePrefix


@dataclass(frozen=True)
class GatedPrefixTerm(JointTerm):
    """Keys and values (B L H P K) in every layer's softmax, and the gate's weight (B L E) and bias (B L)."""

    keys: Tensor
    values: Tensor
    weight: Tensor
    bias: Tensor

    def mass(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor] | None:
        """Sums over the gated keys and values."""
        if call.hidden is None:
            return None
        layer, hidden = call.layer, call.hidden.float()
        gate = (hidden @ self.weight[:, layer, :, None].float()).squeeze(-1) + self.bias[:, layer, None].float()
        gate = gate.sigmoid()[:, None, :, None]  # (B 1 N 1)
        keys, values = (call.for_queries(part[:, layer]).float() for part in (self.keys, self.values))
        scores = call.scores(call.queries.float() * gate, keys)  # of keys times the gate
        highest = scores.amax(-1)
        weights = (scores - highest[..., None]).exp()
        return weights @ values * gate, weights.sum(-1), highest


class UniPELTPrefix(Started):
    """``length`` learned keys and values for every layer and head, and a gate for every layer.

    Args:
        length: positions of the prefix.
        std: standard deviation of keys and values before training; the gates begin at one half.
        start: what keys and values are before training: a text, or a part of ``mmprefix.mappers.starts``. None: random
            numbers.
    """

    leaves = "terms of attention"
    begun = "key_values"

    def __init__(self, sizes: Sizes, *, length: int = 10, std: float = 0.1, start: str | Start | None = None) -> None:
        super().__init__(sizes)
        need_length(self, length)
        self.set_start(start, std)
        self.key_values = nn.Parameter(self.by_layer(self.origin.numbers(length, self.numbers)).contiguous())
        self.weight = nn.Parameter(torch.zeros(sizes.layers, self.hidden_width))
        self.bias = nn.Parameter(torch.zeros(sizes.layers))

    def take(self, reader: TextReader) -> None:
        """Begin keys and values as the start."""
        self.key_values.copy_(self.by_layer(self.origin.vectors(reader, self.sizes, self.key_values.shape[3])))

    @property
    def reads_input(self) -> bool:
        """Always False: the gates read the decoder's hidden states."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> SidePrefix:
        """Features of B inputs, of which only B counts → keys, values and gates beside the cache."""
        keys, values = self.key_values[:, None]
        term = GatedPrefixTerm(keys, values, self.weight[None], self.bias[None])
        return SidePrefix.alone(term, len(features.mask), self.sizes.width, features.mask.device)
