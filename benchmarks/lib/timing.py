"""Interleaved timing: CPU time, wall time and their medians, for machines that other programs use too."""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Times:
    """Seconds of each repetition: CPU time (all threads of this process together), and wall time.

    ``clock`` names the main one of the two. ``peak`` is the most memory allocated on a GPU, in bytes.
    """

    clock: str = "cpu"
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def median(self) -> float:
        """The median by the main clock."""
        return statistics.median(self.cpu if self.clock == "cpu" else self.wall)

    def as_dict(self) -> dict[str, Any]:
        """The fields of a JSON file."""
        medians = {"cpu_median": statistics.median(self.cpu), "wall_median": statistics.median(self.wall)}
        return {"cpu_s": self.cpu, "wall_s": self.wall, **medians, **({"peak": self.peak} if self.peak else {})}


def main_clock(options: argparse.Namespace | Mapping[str, Any]) -> str:
    """The clock of the main figure: "cpu" on one thread of a CPU, which other programs disturb least, else "wall"."""
    values: Mapping[str, Any] = vars(options) if isinstance(options, argparse.Namespace) else options
    return "cpu" if values.get("device", "cpu") == "cpu" and values.get("threads", 1) == 1 else "wall"


def interleave(
    variants: Mapping[str, Callable[[], Any]],
    repeat: int,
    *,
    on_result: Callable[[str, int, Any], None] = lambda *_: None,
    device: str = "cpu",
    clock: str = "cpu",
) -> dict[str, Times]:
    """Time every variant once a round, ``repeat`` rounds, each round in another random order.

    ``on_result(name, round, result)`` is called outside the timed part. Single times go to the error stream. On a GPU
    one round of warm-up comes first, and each time ends when the GPU is done.
    """
    gpu = device != "cpu"
    times = {name: Times(clock) for name in variants}
    order = random.Random(0)
    gc.freeze()  # objects made so far are left out of each garbage collection
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
            on_result(name, number, result)
    gc.unfreeze()
    return times


class MatrixProduct:
    """Matrix products (M K) x (K N), repeated until they take long enough to time: the rate behind a limit."""

    def __init__(
        self, rows: int, inner: int, columns: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.a, self.b = (torch.randn(*shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
        self.out = torch.empty(rows, columns, device=device, dtype=dtype)
        self.calls = max(1, round((1.2e10 if device == "cpu" else 1e13) / (2 * rows * inner * columns)))
        self.operations = 2.0 * rows * inner * columns * self.calls

    def __call__(self) -> None:
        for _ in range(self.calls):
            torch.mm(self.a, self.b, out=self.out)


def layer_products(rows: int, width: int, *, device: str, dtype: torch.dtype) -> dict[str, MatrixProduct]:
    """Products of a decoder's shapes and a square one, by name; the fastest gives the rate of a step's limit."""
    square = 1024 if device == "cpu" else 8192
    shapes = [(rows, width, 4 * width), (rows, 4 * width, width), (square,) * 3]
    return {f"{m} x {k} x {n}": MatrixProduct(m, k, n, device=device, dtype=dtype) for m, k, n in shapes}


class MemoryRead:
    """One read of ``bytes`` bytes of memory: a matrix-vector product, which needs each number of the matrix once."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        rows = 8192 if device == "cpu" else 32768
        self.a = torch.randn(rows, rows, device=device, dtype=dtype)
        self.b, self.out = (torch.zeros(rows, device=device, dtype=dtype) for _ in range(2))
        self.bytes = float(self.a.numel() * self.a.element_size())

    def __call__(self) -> None:
        torch.mv(self.a, self.b, out=self.out)
