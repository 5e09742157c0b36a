"""Times that can be compared on a machine that others use too: variants in turn, processor time, medians."""

from __future__ import annotations

import gc
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch


@dataclass
class Times:
    """Seconds of each repetition: of the processor (all threads of this process together), and on the wall."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle of the processor times, which other processes disturb least."""
        return statistics.median(self.cpu)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        middle = {"cpu_median": self.median, "wall_median": statistics.median(self.wall)}
        return {"cpu_s": self.cpu, "wall_s": self.wall, **middle}


def in_turn(
    variants: Mapping[str, Callable[[], Any]], repeat: int, after: Callable[[str, int, Any], None] = lambda *_: None
) -> dict[str, Times]:
    """Runs every variant once a round, ``repeat`` rounds, each round in another order.

    ``after(name, round, result)`` is called outside the time that is taken. Single times go to the error stream.
    """
    times = {name: Times() for name in variants}
    order = random.Random(0)
    gc.freeze()  # what was there before is not searched for garbage each time
    for number in range(repeat):
        for name in order.sample(list(variants), len(variants)):
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            result = variants[name]()
            times[name].cpu.append(time.process_time() - cpu)
            times[name].wall.append(time.perf_counter() - wall)
            print(f"round {number + 1}, {name}: {times[name].cpu[-1]:.4g} CPU s", file=sys.stderr)
            after(name, number, result)
    gc.unfreeze()
    return times


class Gemm:
    """Products of matrices (M K) x (K N), enough of them for a fifth of a second; a limit is taken at their rate."""

    def __init__(self, rows: int, inner: int, columns: int) -> None:
        self.a, self.b = torch.randn(rows, inner), torch.randn(inner, columns)
        self.out = torch.empty(rows, columns)
        self.calls = max(1, round(1.2e10 / (2 * rows * inner * columns)))
        self.operations = 2.0 * rows * inner * columns * self.calls

    def __call__(self) -> None:
        for _ in range(self.calls):
            torch.mm(self.a, self.b, out=self.out)


def versions() -> dict[str, str]:
    """What a figure depends on besides the code."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers")}}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column flush left and the others flush right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w) if not i else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])
