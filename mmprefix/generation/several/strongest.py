"""Greatest probability that any of several prefixes gives a token: how LAE joins its online and its offline expert.

A Unified Continual Learning Framework with General Parameter-Efficient Tuning (Gao et al.),
https://arxiv.org/abs/2303.10070: the elementwise maximum of both softmaxes, there over classes, here over next tokens.
"""

from __future__ import annotations

from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.generation.several.join import Join


class Strongest(Join):
    """Elementwise maximum of the probabilities; a search makes them sum to 1."""

    def require(self, count: int) -> None:
        """Raise InputError unless there is a prefix."""
        if count < 1:
            raise InputError("Strongest: needs a prefix")

    def __call__(self, log_probs: Tensor, path: Tensor) -> Tensor:
        return log_probs.amax(0)
