"""Cost of reading the feature store against a bare memory map, of opening it, and of sharing it among processes.

    python -m benchmarks.feature_store --entries 50000 --wide 3000 --repeat 5

Entries of 512 numbers, and of 31 frames of 2048, float16. Measured are reading a random entry by its key, reading
as many numbers from a bare memory map, opening the store, and the memory of one process and of ten, spawned or forked,
that read all entries. Reading an entry ends with a copy in memory.
"""

from __future__ import annotations

import argparse
import gc
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

from benchmarks.lib.report import benchmark_parser, markdown_table, options_of, publish, versions
from mmprefix.features.keys import feature_key
from mmprefix.features.store import FeatureStore
from mmprefix.types import FeatureRow

KINDS = {"512": (0, 0, 512), "31 x 2048": (31, 2048, 0)}  # frames, their width, width of the summary


def describe_encoder(kind: str) -> dict[str, Any]:
    """Description of an encoder whose features are entries of ``kind``, by which a store is opened."""
    _, width, pooled = KINDS[kind]
    return {"encoder": "benchmark.Random", "dtype": "float16", "widths": [width, pooled]}


def fill_store(root: Path, kind: str, entries: int, shard: int) -> list[bytes]:
    """Write ``entries`` random entries, ``shard`` of them a shard; their keys."""
    frames, width, pooled = KINDS[kind]
    store = FeatureStore(root, describe_encoder(kind))
    keys = [feature_key(f"{kind} {number}") for number in range(entries)]
    draw = torch.Generator().manual_seed(0)
    for start in range(0, entries, shard):
        shard_keys = keys[start : start + shard]
        rows = [
            FeatureRow(torch.randn(frames, width, generator=draw).half(), torch.randn(pooled, generator=draw).half())
            for _ in shard_keys
        ]
        store.add(f"{start:08}", shard_keys, rows)
    return keys


def time_calls(read: Callable[[Any], Any], keys: list[Any]) -> list[float]:
    """CPU microseconds a call of ``read``, one figure a hundred calls."""
    times: list[float] = []
    for start in range(0, len(keys), 100):
        group = keys[start : start + 100]
        began = time.process_time_ns()
        for key in group:
            read(key)
        times.append((time.process_time_ns() - began) / 1000 / len(group))
    return times


def copying_reader(store: FeatureStore) -> Callable[[bytes], tuple[torch.Tensor, torch.Tensor]]:
    """Function that reads an entry by its key and copies it."""

    def read(key: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        entry = store[key]
        return entry.frames.clone(), entry.pooled.clone()

    return read


def time_reads(root: Path, kind: str, keys: list[bytes], repeat: int) -> dict[str, list[float]]:
    """CPU microseconds an entry: from the store, and from a bare memory map of as many numbers."""
    frames, width, pooled = KINDS[kind]
    store = FeatureStore(root, describe_encoder(kind))
    size = frames * width + pooled
    bare = root / "bare.npy"
    if not bare.exists():
        array = np.lib.format.open_memmap(bare, mode="w+", dtype=np.float16, shape=(len(keys), size))
        array[:] = 1
        array.flush()
    mapped = np.load(bare, mmap_mode="r")
    draw = np.random.default_rng(0)
    times: dict[str, list[float]] = {"store": [], "bare memory map": []}
    sides: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "store": (copying_reader(store), keys),
        "bare memory map": (lambda row: np.array(mapped[row]), list(range(len(keys)))),
    }
    for number in range(repeat + 1):
        for name, (read, side_keys) in sides.items():
            order = [side_keys[i] for i in draw.permutation(len(side_keys))[:5000]]
            round_times = time_calls(read, order)
            times[name] += round_times if number else []  # the first round brings the files into the page cache
    return times


def time_opening(root: Path, kind: str, repeat: int) -> list[float]:
    """CPU milliseconds to open a store and read one entry."""
    times: list[float] = []
    for _ in range(repeat):
        began = time.process_time_ns()
        store = FeatureStore(root, describe_encoder(kind))
        store[next(iter(store))]
        times.append((time.process_time_ns() - began) / 1e6)
    return times


def memory_of_readers(root: Path, kind: str, workers: int, method: str) -> float:
    """MB that opening and reading all entries adds to ``workers`` processes together.

    Each is started by itself (``method`` "spawn") or forked ("fork") from one that holds nothing. Proportional set
    sizes are added up, in which shared memory counts once.
    """
    gc.collect()  # a store still mapped in this process would count as shared
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_memory_added, root, kind, workers, method).result()


def _memory_added(root: Path, kind: str, workers: int, method: str) -> float:
    """Result of ``memory_of_readers``, computed in the process that starts the readers."""
    context: Any = multiprocessing.get_context(method)
    ready, go = context.Barrier(workers + 1), context.Barrier(workers + 1)
    readers = [context.Process(target=_read_all, args=(root, kind, ready, go)) for _ in range(workers)]
    for process in readers:
        process.start()
    total: list[float] = []
    for _ in ("before", "after"):
        ready.wait()
        total.append(sum(proportional_set_size(process.pid, root) for process in readers))
        go.wait()
    for process in readers:
        process.join()
    return total[1] - total[0]


def _read_all(root: Path, kind: str, ready: Any, go: Any) -> None:
    """Open an empty store and wait at both barriers; then read all entries, and wait again."""
    for folder in (root / "nothing", root):
        store = FeatureStore(folder, describe_encoder(kind))
        total = torch.zeros(2, 2).half().sum()
        for key in store:
            total = store[key].frames.sum() + store[key].pooled.sum()
        assert total.isfinite()
        gc.collect()  # it copies memory shared by a fork, which is no cost of the store
        ready.wait()
        go.wait()


def proportional_set_size(process: int, root: Path) -> float:
    """MB of a process by its proportional set size: its anonymous memory, and the files below ``root`` that it maps.

    Libraries do not count: other programs, which come and go, share them.
    """
    total, counts = 0, False
    for line in Path(f"/proc/{process}/smaps").read_text(encoding="utf-8").splitlines():
        name, size, *_ = line.split()
        if not name.endswith(":"):  # a new mapping begins
            counts = "/" not in line or str(root) in line
        elif name == "Pss:" and counts:
            total += int(size)
    return total / 1024


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times and memory of both kinds of entries."""
    kinds: dict[str, Any] = {}
    for kind, entries in (("512", options.entries), ("31 x 2048", options.wide)):
        root = folder / kind.replace(" ", "")
        root.mkdir()
        keys = fill_store(root, kind, entries, options.shard)
        times = time_reads(root, kind, keys, options.repeat)
        readers = {"one process": (1, "spawn"), f"{options.workers} processes": (options.workers, "spawn")}
        readers[f"{options.workers} forked"] = (options.workers, "fork")
        kinds[kind] = {
            "entries": entries,
            "read_us": {name: {"median": median(t), "min": min(t), "max": max(t)} for name, t in times.items()},
            "open_ms": time_opening(root, kind, 5 * options.repeat),
            "memory_mb": {name: memory_of_readers(root, kind, *started) for name, started in readers.items()},
        }
    return {"options": options_of(options), "versions": versions(), "kinds": kinds}


def report(results: dict[str, Any]) -> str:
    """The tables."""
    rows = []
    for kind, figures in results["kinds"].items():
        for name, times in figures["read_us"].items():
            rows.append([kind, name, f"{times['median']:.1f}", f"{times['min']:.1f} - {times['max']:.1f}"])
    text = markdown_table(["entry", "read from", "CPU us", "min - max"], rows)
    for kind, figures in results["kinds"].items():
        text += f"\n{kind}: opening {figures['entries']} entries {median(figures['open_ms']):.1f} ms CPU; in memory "
        text += ", ".join(f"{name}: {value:.0f} MB" for name, value in figures["memory_mb"].items())
    return text


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--entries", type=int, default=50000, help="entries of 512 numbers")
    parser.add_argument("--wide", type=int, default=3000, help="entries of 31 frames of 2048")
    parser.add_argument("--shard", type=int, default=1000, help="entries a shard")
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
