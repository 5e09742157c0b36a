"""Classifier-free guidance between two prefixes: away from what one of them says, beyond what the other does.

Stay on Topic with Classifier-Free Guidance (Sanchez et al.), https://arxiv.org/abs/2306.17806, after Ho and
Salimans, https://arxiv.org/abs/2207.12598.
"""

from __future__ import annotations

from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.generation.several.join import Join


class Guidance(Join):
    """Logits u + scale (c - u) of a conditional prefix c, the first, and another u, such as none at all.

    Args:
        scale: 1 writes as with c alone, 0 as with u; above 1 what sets c apart is exaggerated.
    """

    def __init__(self, scale: float = 1.5) -> None:
        if not abs(scale) < float("inf"):
            raise InputError(f"Guidance.scale {scale}: give a finite number; 1 is no guidance")
        self.scale = float(scale)

    def require(self, count: int) -> None:
        """Raise InputError unless there are two prefixes."""
        if count != 2:
            raise InputError(f"Guidance: joins two prefixes, and there are {count}")

    def __call__(self, log_probs: Tensor, path: Tensor) -> Tensor:
        conditional, other = log_probs
        if self.scale == 1:
            return conditional
        gap = (conditional - other).nan_to_num()  # excluded under both
        return other + self.scale * gap
