"""Peak memory of a training step: mmprefix's, ClipCap's published algorithm, and mmprefix with a wider vocabulary.

    python -m benchmarks.memory --batch 30 --captions 5 --prefix-length 40

Each figure is the peak of the resident set of a process of its own (one step of the transformer mapper, GPT-2 small's
sizes, random weights), and the difference of that peak to the memory once weights are loaded. Another process makes
the weights: the memory that making them frees would be there for the step to use, and not be counted.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.random_gpt2 import Gpt2Size, save_gpt2
from benchmarks.lib.report import benchmark_parser, markdown_table, options_of, publish, versions

OURS, NAIVE, WIDE = "mmprefix", "naive: as in ClipCap's code", "mmprefix, a vocabulary ten times as large"
CHECKPOINTED = "mmprefix, activation checkpointing"


def resident(field: str) -> float:
    """Resident memory of this process in MB: now (``VmRSS``), or its peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def run_in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Result of ``work`` in a fresh process; raises if that fails or is killed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def run_step(name: str, options: argparse.Namespace, folder: str, vocabulary: int) -> dict[str, float]:
    """Resident memory in MB of one step: its "peak", and that with weights "loaded"."""
    from benchmarks.lib.train_variants import TrainStep, naive_loss, shared_prefix_loss
    from benchmarks.lib.workload import draw_workload
    from benchmarks.train_step import CASES

    torch.set_num_threads(1)
    sizes = argparse.Namespace(features=512, prefix_length=options.prefix_length, vocab=vocabulary, words=0)
    case = CASES["transformer"](sizes)
    batch = draw_workload(options.captions, options.batch, vocabulary, case.features, pool=1).median
    mapper = case.mapper(options.width)
    optimizer = torch.optim.AdamW(mapper.parameters(), fused=name != NAIVE)
    if name == NAIVE:
        loss = naive_loss(mapper, None, folder, weight_gradients=True)
    else:
        decoder = case.decoder(folder)
        if name == CHECKPOINTED:
            decoder.recompute_layers()
        loss = shared_prefix_loss(mapper, decoder)
    for weights in [item for item in gc.get_objects() if type(item) is torch.nn.Parameter and not item.is_meta]:
        assert bool(weights.isfinite().all())  # reading them brings their mapped files into memory
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
    loaded = resident("VmRSS")
    TrainStep(loss, optimizer, [batch])()
    return {"peak": resident("VmHWM"), "loaded": loaded}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, each the least of the repetitions, in which nothing else added to the process."""
    steps: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as root:
        for name in (OURS, NAIVE, CHECKPOINTED, WIDE):
            vocabulary = options.vocab * (10 if name == WIDE else 1)
            folder = Path(root) / str(vocabulary)
            if not folder.exists():
                run_in_new_process(save_gpt2, folder, Gpt2Size(options.layers, options.width, vocabulary))
            runs = [run_in_new_process(run_step, name, options, str(folder), vocabulary) for _ in range(options.repeat)]
            steps[name] = min(runs, key=lambda run: run["peak"])
    return {"options": options_of(options), "versions": versions(), "steps": steps}


def report(results: dict[str, Any]) -> str:
    """The table."""
    ours = results["steps"][OURS]
    rows = []
    for name, step in results["steps"].items():
        added, base = step["peak"] - step["loaded"], ours["peak"] - ours["loaded"]
        cells = [f"{step['peak']:.0f}", f"{ours['peak'] / step['peak']:.2f}", f"{added:.0f}", f"{added / base:.2f}"]
        rows.append([name, *cells])
    return markdown_table(["step", "peak MB", "mmprefix's / it", "added by the step MB", "of mmprefix's"], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--prefix-length", type=int, default=40)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args(arguments)
    results = measure(options)
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
