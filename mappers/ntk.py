"""NTK attention: an endless prefix as two learned tensors a head, by a kernel inside the softmax.

Toward Infinite-Long Prefix in Transformer (Liang et al.), https://arxiv.org/abs/2406.14036: with
phi(q) = ELU(q / K^(1/4)) + 1 of the query before its scale, each head has k (K) and Z (K x K), and

    out = (sum_j exp(s_j) v_j + phi(q) Z) / (sum_j exp(s_j) + phi(q) |k|)

over the scores s_j of the layer's own keys: K^2 + K trained numbers a head. The released code draws k and Z from
N(0, 1) times 1e-4 for a language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from mmprefix.kv_cache.side_terms import AttentionCall, JointTerm
from mmprefix.mappers.base import DeepMapper, Sizes
from mmprefix.types import Features, SidePrefix


@dataclass(frozen=True)
class KernelTerm(JointTerm):
    """Kernel prefix: ``k`` (B L H' K) and ``z`` (B L H' K K)."""

    k: Tensor
    z: Tensor

    def mass(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q) Z, phi(q) |k|, and the factor 1."""
        queries = call.queries.float()
        phi = elu(queries / queries.shape[-1] ** 0.25) + 1
        weights = (phi * self.k[:, call.layer, :, None].float().abs()).sum(-1)
        return phi @ self.z[:, call.layer].float(), weights, torch.zeros_like(weights)


class NTKAttention(DeepMapper):
    """Learned k and Z for every layer and query head, the same for every input.

    Args:
        std: standard deviation of both before training.
    """

    leaves = "terms of attention"

    def __init__(self, sizes: Sizes, *, std: float = 1e-4) -> None:
        super().__init__(sizes)
        heads = (sizes.layers, self.query_heads, sizes.head_width)
        self.k = nn.Parameter(torch.randn(*heads) * std)
        self.z = nn.Parameter(torch.randn(*heads, sizes.head_width) * std)

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    def forward(self, features: Features, context: Features | None = None) -> SidePrefix:
        """Features of B inputs, of which only B counts → the kernel beside the cache."""
        term = KernelTerm(self.k[None], self.z[None])
        return SidePrefix.alone(term, len(features.mask), self.sizes.width, features.mask.device)
