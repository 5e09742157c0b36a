"""Adam by rows: only rows of a matrix that have a gradient are moved, so that users who are not in a batch stay.

Adam, https://arxiv.org/abs/1412.6980, with the decoupled weight decay of https://arxiv.org/abs/1711.05101. The moments
of a row decay with its own steps, as those of ``torch.optim.SparseAdam`` do, which takes no weight decay, no other
parameters beside it, and no clipping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RowAdam(torch.optim.Optimizer):
    """AdamW in which each row (first dimension) of a parameter is moved where its gradient is not zero, with own steps.

    A parameter of one dimension is one row. Where every row has a gradient in every step it equals ``AdamW``.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of both moments.
        eps: added to the root of the second moment.
        weight_decay: share of a moved row that is taken away at each step, times the rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move the rows that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        table = parameter.view(1, -1) if parameter.ndim < 2 else parameter.view(len(parameter), -1)
        gradient = gradient.reshape(table.shape)
        moved = gradient.any(1).nonzero()[:, 0]
        state = self.state[parameter]
        if not state:
            state["first"], state["second"] = torch.zeros_like(table), torch.zeros_like(table)
            # by this name a checkpoint of parameters in half precision keeps it in full
            state["step"] = torch.zeros(len(table), 1, dtype=torch.float32, device=table.device)
        state["step"] = state["step"].to(table.device)
        if not len(moved):
            return
        (first_decay, second_decay), rows = group["betas"], gradient[moved].float()
        steps = state["step"][moved] + 1
        first = state["first"][moved].float().lerp(rows, 1 - first_decay)
        second = state["second"][moved].float().mul(second_decay).addcmul(rows, rows, value=1 - second_decay)
        state["step"][moved] = steps
        state["first"][moved], state["second"][moved] = first.to(table.dtype), second.to(table.dtype)
        scale = (second / (1 - second_decay**steps)).sqrt() + group["eps"]
        kept = table[moved].float() * (1 - group["lr"] * group["weight_decay"])
        table[moved] = (kept - group["lr"] * first / (1 - first_decay**steps) / scale).to(table.dtype)
