"""MeZO, zeroth-order descent in place: two losses a step, no gradient, and no more memory than inference needs.

Fine-Tuning Language Models with Just Forward Passes (Malladi et al.), https://arxiv.org/abs/2305.17333
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.training.optimization.gradient_free import loss_of


class MeZO(torch.optim.Optimizer):
    """Step of SPSA in which the noise z ~ N(0, 1) is drawn again from a seed instead of being kept.

    g = (L(theta + eps z) - L(theta - eps z)) / (2 eps); theta <- theta - lr (g z + weight_decay theta). Between its two
    losses and after them the parameters are moved back by the same numbers, so they come back within rounding.

    Args:
        params: parameters, or groups of them. Decay takes matrices only, no vectors (biases, norms).
        lr: learning rate. Published for a prefix: 1e-2 or 1e-3.
        eps: size of a probe. Published for a prefix: 1e-1.
        weight_decay: share of a matrix that is taken away at each step, times the rate.
        seed: of the noise; with the number of the step it gives z.
    """

    reads_loss = True

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, eps: float = 1e-1, *, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps)):
            if not 0 < value < float("inf"):
                raise InputError(f"MeZO.{name} {value}: give a number above 0")
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "seed": seed, "steps": 0}
        super().__init__(params, defaults)  # what a group holds is in a checkpoint

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Probe both ways along z and move against it; the mean of both losses is returned."""
        self._shift(1)
        above = loss_of(closure, "MeZO")
        self._shift(-2)
        below = loss_of(closure, "MeZO")
        self._shift(1)
        if not math.isfinite(above - below):
            raise InputError(f"MeZO: the losses on both sides are {above} and {below}; lower eps, or the rate")
        for group, parameter, noise in self._noise():
            slope = (above - below) / (2 * group["eps"])
            if group["weight_decay"] and parameter.ndim > 1:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(noise, alpha=group["lr"] * slope)
        for group in self.param_groups:
            group["steps"] += 1
        return (above + below) / 2

    def _shift(self, times: int) -> None:
        for group, parameter, noise in self._noise():
            parameter.add_(noise, alpha=times * group["eps"])

    def _noise(self) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Each parameter with its group and its z of this step, one at a time; the same at every call."""
        generators: dict[torch.device, torch.Generator] = {}
        first = self.param_groups[0]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.device not in generators:
                    generator = torch.Generator(parameter.device)
                    generators[parameter.device] = generator.manual_seed((first["seed"] << 32) + first["steps"])
                generator = generators[parameter.device]
                shape, kind = parameter.shape, {"device": parameter.device, "dtype": parameter.dtype}
                yield group, parameter, torch.randn(shape, generator=generator, **kind)
