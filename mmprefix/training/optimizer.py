"""The optimiser's fused kernel and the learning rate's schedule."""

from __future__ import annotations

from collections.abc import Callable

import torch


def use_fused_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Lets ``optimizer`` update all tensors of a group in one kernel, where it can and nothing else was asked for."""
    for group in optimizer.param_groups:
        undecided = group.get("fused", False) is None and group.get("foreach") is None
        if undecided and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"]):
            group["fused"] = not (group.get("capturable") or group.get("differentiable"))


def lr_factor(kind: str, warmup: float, total: float) -> Callable[[int], float]:
    """The factor on the learning rate at a step: a linear rise (warm-up), then level, a line or half a cosine.

    A function, not an object: LambdaLR would save what an object knows, and a longer run could not go on from there.
    """
    rise = round(warmup * total) if warmup < 1 else int(warmup)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        if kind == "constant":
            return 1.0
        done = min(1.0, (step - rise) / max(1, total - rise))
        return 1 - done if kind == "linear" else 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))

    return factor
