"""AdamW for many small trainings side by side, each with its own rate and weight decay.

https://arxiv.org/abs/1711.05101; ``torch.optim.AdamW`` takes one rate for a tensor, and a group for each would cost
more than the step itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

WARMUP, LEAST = 50, 1e-5


def rate_at(step: int, rates: Tensor, steps: int) -> Tensor:
    """Rate of each run (R) at ``step`` from 0 on: 1e-5 first, linear up to ``rates`` (R) in 50 steps, then a cosine.

    The cosine is over all ``steps`` and begins after the 50, as in CoOp's schedule, which the authors use.
    """
    if step == 0:
        return torch.full_like(rates, LEAST)
    if step < WARMUP:
        return rates * step / WARMUP
    return rates * (1 + math.cos(math.pi * (step - WARMUP) / steps)) / 2


class SideBySideAdamW:
    """AdamW over parameters whose first dimension is the runs (R ...), with a rate and a decay for each run.

    A run moves as it would alone with ``torch.optim.AdamW``.

    Args:
        parameters: tensors (R ...), with gradients at each ``step``.
        weight_decay: of each run (R).
        betas: decay of both moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        weight_decay: Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.decay, self.betas, self.eps, self.count = weight_decay, betas, eps, 0
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, rates: Tensor) -> None:
        """Move each run at its rate (R), and drop the gradients."""
        self.count += 1
        one, two = self.betas
        corrected = rates / (1 - one**self.count)
        root = math.sqrt(1 - two**self.count)
        for parameter, first, second in zip(self.parameters, self.first, self.second, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            each = (-1, *[1] * (parameter.ndim - 1))
            parameter.mul_((1 - rates * self.decay).view(each))
            first.lerp_(gradient, 1 - one)
            second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
            parameter.sub_(corrected.view(each) * first / (second.sqrt() / root).add_(self.eps))
            parameter.grad = None
