"""Table of parts and their parameter counts, printed by a dry run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmprefix.mappers.parallel import Parallel
from mmprefix.training.task import PrefixTask


def parameter_table(task: PrefixTask) -> list[str]:
    """Lines of the table: each part with its class, its parameters, and how many of them are trained."""
    model = task.model
    lines = [f"{'part':24} {'class':20} {'parameters':>14} {'trained':>14}"]
    rows: list[tuple[str, Any]] = [(f"{n} encoder", model.encoder(n)) for n in model.encoders]
    for n, mapper in model.mappers.items():
        inside = mapper.mappers if isinstance(mapper, Parallel) else []
        rows += [(f"{n} mapper", mapper), *((f"{n} mapper, part {i}", part) for i, part in enumerate(inside, start=1))]
    rows += [] if model.task_prefix is None else [("task prefix", model.task_prefix)]
    rows += [] if model.transcriber is None else [("transcriber", model.transcriber)]
    rows += [("decoder", model.decoder), ("all", model)]
    for name, part in rows:
        count: Callable[[bool], int] = lambda trained, part=part: sum(  # noqa: E731
            p.numel() for p in part.parameters() if p.requires_grad or not trained
        )
        lines.append(f"{name:24} {type(part).__name__:20} {count(False):14,} {count(True):14,}")
    return lines
