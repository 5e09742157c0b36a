"""The store of users: reading one user's prefix, opening the store, bytes a user, adding and removing users.

    python -m benchmarks.users

Two kinds of prefixes: ``soft``, ten embeddings of width 768 in float16, and ``ulpt``, 128 numbers a user in float16.
Times are of the wall clock, for writing waits for the disk; of loads the CPU time too.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.lib.report import benchmark_parser, markdown_table, options_of, publish, versions
from mmprefix.users import UserStore

KINDS = {"soft": (10, 768), "ulpt": (128,)}
HISTORY = ["a dog runs over the wet grass, again"] * 8


def milliseconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def fill(path: Path, kind: str, users: list[str]) -> None:
    """Make a store of ``users``, each with eight texts and a prefix of random numbers, in one transaction."""
    draw = torch.Generator().manual_seed(0)
    with UserStore(path, create=True) as store, store.transaction():
        store.add_many(dict.fromkeys(users, HISTORY))
        for user in users:
            store.put(user, "prefix", {"embeds": torch.randn(KINDS[kind], generator=draw).half()}, key="model")


def measure_kind(path: Path, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one kind; the store lies at ``path``."""
    users = [f"user {number:05}" for number in range(options.users)]
    filled = milliseconds(lambda: fill(path, kind, users))
    size = path.stat().st_size
    opening = [milliseconds(lambda: UserStore(path).close()) for _ in range(options.repeat)]
    with UserStore(path) as store:
        order = random.Random(0).choices(users, k=options.loads)
        began = time.process_time()
        loads = [milliseconds(lambda user=user: store.tensors(user, "prefix", key="model")) for user in order]
        load_cpu = (time.process_time() - began) * 1000 / len(loads)
        texts = [milliseconds(lambda user=user: store.history(user)) for user in order]
        adding = [milliseconds(lambda user=f"new {n}": store.add(user, HISTORY)) for n in range(options.repeat)]
        removing = [milliseconds(lambda user=users[n]: store.remove(user)) for n in range(options.repeat)]
    numbers = torch.Size(KINDS[kind]).numel() * 2
    return {
        "prefix_bytes": numbers,
        "file_bytes_a_user": size / len(users),
        "fill_ms_a_user": filled / len(users),
        "load_ms": loads,
        "load_cpu_ms": load_cpu,
        "history_ms": texts,
        "open_ms": opening,
        "add_ms": adding,
        "remove_ms": removing,
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of both kinds."""
    kinds = {kind: measure_kind(folder / f"{kind}.db", kind, options) for kind in KINDS}
    return {"options": options_of(options), "versions": versions(), "kinds": kinds}


def report(results: dict[str, Any]) -> str:
    """The table, of medians; of loads the mean CPU time too, which other programs do not change."""
    rows: list[list[str]] = []
    for kind, figures in results["kinds"].items():
        times = [f"{median(figures[name]):.2f}" for name in ("history_ms", "open_ms", "add_ms", "remove_ms")]
        sizes = [f"{figures['prefix_bytes']:,}", f"{figures['file_bytes_a_user']:,.0f}"]
        rows.append([kind, *sizes, f"{median(figures['load_ms']):.2f}", f"{figures['load_cpu_ms']:.2f}", *times])
    head = [
        "prefix",
        "its numbers, bytes",
        "file, bytes a user",
        "load, ms",
        "CPU, ms",
        "history",
        "open",
        "add",
        "remove",
    ]
    return markdown_table(head, rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--loads", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=5, help="openings, additions and removals of one user")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
