"""What reading from the feature store costs, against a bare memory map, and what a run saves by it.

    python -m benchmarks.feature_store --entries 50000 --wide 3000 --repeat 5

Entries of 512 numbers, and of 31 frames of 2048, float16: one at random with its key, the same from a bare memory map,
opening the store, and the memory of one process and of ten, started one by one or forked, that read all of it. Reading
one entry ends with a copy in memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.lib.timing import table, versions
from mmprefix.features.keys import feature_key
from mmprefix.features.store import FeatureStore
from mmprefix.types import FeatureRow

KINDS = {"512": (0, 0, 512), "31 x 2048": (31, 2048, 0)}  # frames, their width, width of the summary


def description(kind: str) -> dict[str, Any]:
    """Of an encoder that finds entries of this kind."""
    _, width, pooled = KINDS[kind]
    return {"encoder": "benchmark.Random", "dtype": "float16", "widths": [width, pooled]}


def filled(root: Path, kind: str, entries: int, shard: int) -> list[bytes]:
    """A store of so many entries, so many a shard; its keys."""
    frames, width, pooled = KINDS[kind]
    store = FeatureStore(root, description(kind))
    keys = [feature_key(f"{kind} {number}") for number in range(entries)]
    draw = torch.Generator().manual_seed(0)
    for at in range(0, entries, shard):
        some = keys[at : at + shard]
        found = [
            FeatureRow(torch.randn(frames, width, generator=draw).half(), torch.randn(pooled, generator=draw).half())
            for _ in some
        ]
        store.add(f"{at:08}", some, found)
    return keys


def each(read: Callable[[Any], Any], places: list[Any]) -> list[float]:
    """Microseconds of CPU a call, over groups of a hundred calls."""
    found: list[float] = []
    for at in range(0, len(places), 100):
        group = places[at : at + 100]
        began = time.process_time_ns()
        for place in group:
            read(place)
        found.append((time.process_time_ns() - began) / 1000 / len(group))
    return found


def copied(store: FeatureStore) -> Callable[[bytes], tuple[torch.Tensor, torch.Tensor]]:
    """Reads an entry and copies it."""

    def read(name: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        entry = store[name]
        return entry.frames.clone(), entry.pooled.clone()

    return read


def reads(root: Path, kind: str, keys: list[bytes], repeat: int) -> dict[str, list[float]]:
    """Microseconds an entry: from the store, and from a bare memory map of the same numbers."""
    frames, width, pooled = KINDS[kind]
    store = FeatureStore(root, description(kind))
    size = frames * width + pooled
    bare = root / "bare.npy"
    if not bare.exists():
        made = np.lib.format.open_memmap(bare, mode="w+", dtype=np.float16, shape=(len(keys), size))
        made[:] = 1
        made.flush()
    mapped = np.load(bare, mmap_mode="r")
    draw = np.random.default_rng(0)
    found: dict[str, list[float]] = {"store": [], "bare memory map": []}
    sides: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "store": (copied(store), keys),
        "bare memory map": (lambda row: np.array(mapped[row]), list(range(len(keys)))),
    }
    for number in range(repeat + 1):
        for name, (read, places) in sides.items():
            order = [places[i] for i in draw.permutation(len(places))[:5000]]
            times = each(read, order)
            found[name] += times if number else []  # the first round brings the files into the page cache
    return found


def opening(root: Path, kind: str, repeat: int) -> list[float]:
    """Milliseconds of CPU to open a store and read one entry."""
    found: list[float] = []
    for _ in range(repeat):
        began = time.process_time_ns()
        store = FeatureStore(root, description(kind))
        store[next(iter(store))]
        found.append((time.process_time_ns() - began) / 1e6)
    return found


def memory(root: Path, kind: str, workers: int, method: str) -> float:
    """MB that opening and reading all entries adds to so many processes together, each started by itself (``spawn``)
    or forked (``fork``) from one that holds nothing. By their proportional set sizes: what is shared counts once."""
    gc.collect()  # a store that is still mapped here would count as shared
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(added, root, kind, workers, method).result()


def added(root: Path, kind: str, workers: int, method: str) -> float:
    """What ``memory`` gives, in the process that starts the others."""
    context = multiprocessing.get_context(method)
    ready, go = context.Barrier(workers + 1), context.Barrier(workers + 1)
    some = [context.Process(target=reader, args=(root, kind, ready, go)) for _ in range(workers)]  # pyright: ignore
    for process in some:
        process.start()
    total: list[float] = []
    for _ in ("before", "after"):
        ready.wait()
        total.append(sum(proportional(process.pid or 0, root) for process in some))
        go.wait()
    for process in some:
        process.join()
    return total[1] - total[0]


def reader(root: Path, kind: str, ready: Any, go: Any) -> None:
    """Waits when it has all that an empty store takes; then reads all entries, and waits."""
    for place in (root / "nothing", root):
        store = FeatureStore(place, description(kind))
        total = torch.zeros(2, 2).half().sum()
        for name in store:
            total = store[name].frames.sum() + store[name].pooled.sum()
        assert total.isfinite()
        gc.collect()  # which copies what a fork shared: once, and not because of the store
        ready.wait()
        go.wait()


def proportional(process: int, root: Path) -> float:
    """MB of a process by its proportional set size: its memory, and what it has mapped of the files below ``root``.
    Libraries do not count: other programs, which come and go, share them."""
    total, counts = 0, False
    for line in Path(f"/proc/{process}/smaps").read_text(encoding="utf-8").splitlines():
        name, size, *_ = line.split()
        if not name.endswith(":"):  # here a mapping begins
            counts = "/" not in line or str(root) in line
        elif name == "Pss:" and counts:
            total += int(size)
    return total / 1024


def measured(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """All figures."""
    found: dict[str, Any] = {"options": vars(options), "versions": versions(), "kinds": {}}
    for kind, entries in (("512", options.entries), ("31 x 2048", options.wide)):
        root = place / kind.replace(" ", "")
        root.mkdir()
        keys = filled(root, kind, entries, options.shard)
        times = reads(root, kind, keys, options.repeat)
        sides = {"one process": (1, "spawn"), f"{options.workers} processes": (options.workers, "spawn")}
        sides[f"{options.workers} forked"] = (options.workers, "fork")
        found["kinds"][kind] = {
            "entries": entries,
            "read_us": {name: {"median": median(t), "min": min(t), "max": max(t)} for name, t in times.items()},
            "open_ms": opening(root, kind, 5 * options.repeat),
            "memory_mb": {name: memory(root, kind, *side) for name, side in sides.items()},
        }
    return found


def report(found: dict[str, Any]) -> str:
    """The tables."""
    rows = []
    for kind, figures in found["kinds"].items():
        for name, times in figures["read_us"].items():
            rows.append([kind, name, f"{times['median']:.1f}", f"{times['min']:.1f} - {times['max']:.1f}"])
    text = table(["entry", "read from", "CPU us", "min - max"], rows)
    for kind, figures in found["kinds"].items():
        text += f"\n{kind}: opening {figures['entries']} entries {median(figures['open_ms']):.1f} ms CPU; in memory "
        text += ", ".join(f"{name}: {value:.0f} MB" for name, value in figures["memory_mb"].items())
    return text


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the tables, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=50000, help="of 512 numbers")
    parser.add_argument("--wide", type=int, default=3000, help="entries of 31 frames of 2048")
    parser.add_argument("--shard", type=int, default=1000, help="entries a shard")
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    print(report(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
