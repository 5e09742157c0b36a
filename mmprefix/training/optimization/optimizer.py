"""Optimizer and learning rate schedule of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from mmprefix.errors import InputError

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]  # a recipe names the class


def configure(
    optimizer: torch.optim.Optimizer, *, schedule: str, warmup: float, total: Callable[[], float]
) -> torch.optim.Optimizer | dict[str, Any]:
    """Value for Lightning's ``configure_optimizers``: ``optimizer``, fused where it can be, with its schedule by step.

    ``schedule`` and ``warmup`` are those of ``lr_factor``; ``total`` gives the number of steps, inf where the run has
    no end. Raises InputError for a schedule that needs one.
    """
    use_fused_optimizer(optimizer)
    if schedule == "constant" and not warmup:
        return optimizer
    steps = total()
    if steps == float("inf") and (schedule != "constant" or warmup < 1):
        raise InputError(
            f"model.schedule {schedule}, model.warmup {warmup}: this run has no last step to count back from; give "
            "trainer.max_epochs or trainer.max_steps, or a constant schedule and a warmup in steps"
        )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(schedule, warmup, steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def with_rates(
    optimizer: OptimizerFactory, parameters: Mapping[str, torch.nn.Parameter], rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Optimizer of ``parameters``, by their names in a ``PrefixLM``, with the rate of each part times its factor.

    ``rates`` names branches, ``prefix`` or ``decoder``, or goes on to what is inside: ``prefix.embeds``, whose factor
    then counts in place of the whole part's. Raises InputError for a part that trains nothing, and for a factor that is
    not above 0.
    """
    factors = dict.fromkeys(parameters, 1.0)
    for part, factor in sorted(rates.items(), key=lambda rate: rate[0].count(".")):
        own = [name for name in parameters if is_in(short_name(name), part)]
        if not own:
            parts = sorted({short_name(name).split(".", 1)[0] for name in parameters})
            raise InputError(f"model.rates.{part}: no such part is trained; give any of {', '.join(parts)}")
        if not 0 < factor < float("inf"):
            raise InputError(f"model.rates.{part} {factor}: give a factor above 0")
        factors |= dict.fromkeys(own, float(factor))
    groups = [[name for name in parameters if factors[name] == factor] for factor in dict.fromkeys(factors.values())]
    built = optimizer([{"params": [parameters[name] for name in names]} for names in groups])
    for group, names in zip(built.param_groups, groups, strict=True):
        group["lr"] *= factors[names[0]]
    return built


def short_name(name: str) -> str:
    """Name of a parameter of a ``PrefixLM`` from the part on: ``user.rows``, ``prefix.table``, ``decoder...``."""
    room, rest = name.split(".", 1)
    return rest if room in ("mappers", "encoders") else f"{'prefix' if room == 'task_prefix' else room}.{rest}"


def is_in(name: str, part: str) -> bool:
    """True if ``part`` is a short name, or the beginning of it."""
    return name == part or name.startswith(f"{part}.")


def use_fused_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Let ``optimizer`` update all tensors of a group in one kernel, where it can and nothing else was asked for."""
    for group in optimizer.param_groups:
        undecided = group.get("fused", False) is None and group.get("foreach") is None
        if undecided and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"]):
            group["fused"] = not (group.get("capturable") or group.get("differentiable"))


def lr_factor(kind: str, warmup: float, total: float) -> Callable[[int], float]:
    """Factor on the learning rate at a step: a linear rise (warm-up), then constant, linear or half a cosine to zero.

    ``warmup`` is a number of steps, or below 1 a fraction of the ``total``. It returns a function, not an object:
    LambdaLR would save an object's attributes, and a longer run could not go on from there.
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


def restore_rates(schedulers: Iterable[Any]) -> None:
    """Set the learning rates that ``schedulers`` give for the step they are at.

    A run that is resumed with another number of steps otherwise takes its first step at the rate of the old schedule.
    """
    for scheduler in schedulers:
        if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            for group, rate, factor in groups:
                group["lr"] = rate * factor(scheduler.last_epoch)
