"""Contract of all ways to join the next-token distributions of S prefixes, and the plain ones: weighted, two ways.

Product of experts (Hinton 2002, https://doi.org/10.1162/089976602760128018) and a mixture of the probabilities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mmprefix.errors import InputError


class Join(ABC):
    """Function of the log-probabilities under S prefixes → those that a search picks its next tokens by."""

    @abstractmethod
    def __call__(self, log_probs: Tensor, path: Tensor) -> Tensor:
        """Log-probabilities of the next token (S B W V) → joined logits (B W V); the search normalises them.

        ``path`` (S B W n) holds the log-probability of each token so far of every hypothesis, under each prefix.
        """

    @abstractmethod
    def require(self, count: int) -> None:
        """Raise InputError unless it joins ``count`` prefixes."""


class _Weighted(Join):
    """Join with a weight for each prefix."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = [float(weight) for weight in weights]
        if not self.weights or not any(self.weights) or not all(abs(w) < float("inf") for w in self.weights):
            raise InputError(f"{type(self).__name__}.weights {self.weights}: give a finite number for each prefix, not "
                             "all of them 0")  # fmt: skip

    def require(self, count: int) -> None:
        """Raise InputError unless there are ``count`` weights."""
        if len(self.weights) != count:
            raise InputError(f"{type(self).__name__}.weights: has {len(self.weights)} for {count} prefixes")


class Product(_Weighted):
    """Weighted sum of log-probabilities: all prefixes must agree on a token. A negative weight shuns what one says."""

    def __call__(self, log_probs: Tensor, path: Tensor) -> Tensor:
        parts = [w * row for w, row in zip(self.weights, log_probs, strict=True) if w]  # 0 times -inf is no number
        return sum(parts[1:], parts[0])


class Mixture(_Weighted):
    """Weighted mean of probabilities: what one prefix alone wants can be written too. Weights are made to sum to 1."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__(weights)
        if min(self.weights) < 0:
            raise InputError(f"Mixture.weights {self.weights}: give no number below 0; Product takes them")

    def __call__(self, log_probs: Tensor, path: Tensor) -> Tensor:
        shares = log_probs.new_tensor(self.weights) / sum(self.weights)
        return torch.logsumexp(log_probs + shares.log()[:, None, None, None], dim=0)
