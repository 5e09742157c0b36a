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
from typing import Any, cast

import torch


@dataclass
class Times:
    """Seconds of each repetition: of the processor (all threads of this process together), and on the wall.

    ``clock`` says which of the two counts. ``peak`` is the most memory, in bytes, that was taken on a GPU.
    """

    clock: str = "cpu"
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def median(self) -> float:
        """The middle of the times that count: of the processor's, which others disturb least, or on the wall."""
        return statistics.median(self.cpu if self.clock == "cpu" else self.wall)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        middle = {"cpu_median": statistics.median(self.cpu), "wall_median": statistics.median(self.wall)}
        return {"cpu_s": self.cpu, "wall_s": self.wall, **middle, **({"peak": self.peak} if self.peak else {})}


def clock_of(options: Any) -> str:
    """What counts for a figure: the processor's time ("cpu"); of several threads or a GPU that on the wall ("wall")."""
    given = cast(Mapping[str, Any], options if isinstance(options, Mapping) else vars(options))
    return "cpu" if given.get("device", "cpu") == "cpu" and given.get("threads", 1) == 1 else "wall"


def in_turn(
    variants: Mapping[str, Callable[[], Any]],
    repeat: int,
    after: Callable[[str, int, Any], None] = lambda *_: None,
    device: str = "cpu",
    clock: str = "cpu",
) -> dict[str, Times]:
    """Runs every variant once a round, ``repeat`` rounds, each round in another order.

    ``after(name, round, result)`` is called outside the time that is taken. Single times go to the error stream. On a
    GPU a round that is not counted comes first, and each time ends when the GPU is done.
    """
    gpu = device != "cpu"
    times = {name: Times(clock) for name in variants}
    order = random.Random(0)
    gc.freeze()  # what was there before is not searched for garbage each time
    for number in range(-1 if gpu else 0, repeat):
        for name in order.sample(list(variants), len(variants)):
            gc.collect()
            if gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            cpu, wall = time.process_time(), time.perf_counter()
            result = variants[name]()
            if gpu:
                torch.cuda.synchronize()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number < 0:
                continue
            times[name].cpu.append(cpu)
            times[name].wall.append(wall)
            times[name].peak = max(times[name].peak, torch.cuda.max_memory_allocated() if gpu else 0)
            print(f"round {number + 1}, {name}: {cpu:.4g} CPU s, {wall:.4g} s", file=sys.stderr)
            after(name, number, result)
    gc.unfreeze()
    return times


class Gemm:
    """Products of matrices (M K) x (K N), enough of them for a while; a limit is taken at their rate."""

    def __init__(
        self, rows: int, inner: int, columns: int, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.a, self.b = (torch.randn(*shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
        self.out = torch.empty(rows, columns, device=device, dtype=dtype)
        self.calls = max(1, round((1.2e10 if device == "cpu" else 1e13) / (2 * rows * inner * columns)))
        self.operations = 2.0 * rows * inner * columns * self.calls

    def __call__(self) -> None:
        for _ in range(self.calls):
            torch.mm(self.a, self.b, out=self.out)


class Read:
    """Reads so many bytes of memory, once: a product of a matrix and a vector needs each number once only."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        rows = 8192 if device == "cpu" else 32768
        self.a = torch.randn(rows, rows, device=device, dtype=dtype)
        self.b, self.out = (torch.zeros(rows, device=device, dtype=dtype) for _ in range(2))
        self.bytes = float(self.a.numel() * self.a.element_size())

    def __call__(self) -> None:
        torch.mv(self.a, self.b, out=self.out)


def versions() -> dict[str, str]:
    """What a figure depends on besides the code."""
    card = {"GPU": torch.cuda.get_device_name().removeprefix("NVIDIA ")} if torch.cuda.is_available() else {}
    libraries = {name: version(name) for name in ("torch", "transformers")}
    return {"python": platform.python_version(), **libraries, **card}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column flush left and the others flush right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w) if not i else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])
