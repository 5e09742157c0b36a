"""Air-Decoding: prefixes of opposed attributes say which tokens carry an attribute, and that bends a language model.

Air-Decoding: Attribute Distribution Reconstruction for Decoding-Time Controllable Text Generation (Zhong et al.),
https://arxiv.org/abs/2310.14892
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.generation.options import IMPOSSIBLE
from mmprefix.generation.several.join import Join

_SURE, _NEVER = -1e-8, -1e30  # log-probabilities beyond which 1 / log p is no number


class AirDecoding(Join):
    """Probability p(x) r(x)^strength of a language model p, the first, and prefixes of attributes, the wanted first.

    With a_i(x) = -1 / log p_i(x) the attribute's share is r = a_1 / (a_1 + sum over j > 1 of s_j a_j), where s_j is the
    product of a_j / a_1 over the tokens written so far. a_i is flatter than p_i, so that the language model's fluent
    tokens are not lost where an attribute is sure of itself (attribute collapse).

    Args:
        strength: power of r. Published: 20; 140 for sentiment.
        top_k: likeliest tokens that stay possible. Published: 200.
    """

    def __init__(self, strength: float = 20.0, top_k: int = 200) -> None:
        if not 0 <= strength < float("inf"):
            raise InputError(f"AirDecoding.strength {strength}: give a number from 0 on")
        if top_k < 1:
            raise InputError(f"AirDecoding.top_k {top_k}: give a number from 1 on")
        self.strength, self.top_k = float(strength), top_k

    def require(self, count: int) -> None:
        """Raise InputError unless there are a language model and two attributes."""
        if count < 3:
            raise InputError(f"AirDecoding: needs the language model and two attributes, the wanted first, not {count}")

    def __call__(self, log_probs: Tensor, path: Tensor) -> Tensor:
        model, attributes = log_probs[0], log_probs[1:]
        weight = _log_a(attributes) + _log_a(path[1:]).sum(-1, keepdim=True)  # log a_i, and of what is written already
        joined = model + self.strength * (weight[0] - torch.logsumexp(weight, dim=0))
        if self.top_k >= joined.shape[-1]:
            return joined
        least = joined.topk(self.top_k, dim=-1).values[..., -1:]
        return joined.masked_fill(joined < least, IMPOSSIBLE)


def _log_a(log_probs: Tensor) -> Tensor:
    """Log of a = -1 / log p."""
    return -(-log_probs.clamp(_NEVER, _SURE)).log()
