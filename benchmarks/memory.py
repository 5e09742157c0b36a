"""The most memory that a training step takes: as it is, as ClipCap's public code does it, and with a wider vocabulary.

    python -m benchmarks.memory --batch 30 --captions 5 --prefix-length 40

Each figure is the peak of the resident set of a process of its own (one step of the transformer mapper, GPT-2 small's
sizes, random weights), and what that peak adds to the process once its weights are loaded. Another process makes the
weights: what making them frees would be there for the step to use, and not be counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.random_gpt2 import Size, save
from benchmarks.lib.timing import table, versions

OURS, NAIVE, WIDE = "mmprefix", "naive: all that ClipCap's code does", "mmprefix, a vocabulary ten times as large"
AGAIN = "mmprefix, layers computed again on the way back"


def resident(what: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` gives in a fresh process; raises where that fails or is killed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def step(name: str, options: argparse.Namespace, folder: str, vocabulary: int) -> dict[str, float]:
    """One step: {"peak", "loaded"}."""
    from benchmarks import train_step as steps
    from benchmarks.lib.workload import draw

    torch.set_num_threads(1)
    given = argparse.Namespace(features=512, prefix_length=options.prefix_length, vocab=vocabulary, words=0)
    case = steps.CASES["transformer"](given)
    work = draw(options.captions, options.batch, vocabulary, case.features, 1).middle
    mapper = case.mapper(options.width)
    optimizer = torch.optim.AdamW(mapper.parameters(), fused=name != NAIVE)
    if name == NAIVE:
        loss = steps.naive(mapper, None, folder, into_weights=True)
    else:
        decoder = case.decoder(folder)
        if name == AGAIN:
            decoder.recompute_layers()
        loss = steps.shared(mapper, decoder)
    for weights in [one for one in gc.get_objects() if type(one) is torch.nn.Parameter]:
        assert bool(weights.isfinite().all())  # their files are mapped: now they are in memory
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
    loaded = resident("VmRSS")
    steps.Step(loss, optimizer, [work])()
    return {"peak": resident("VmHWM"), "loaded": loaded}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, each the least of the repetitions: what else a process took by chance does not count."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as root:
        for name in (OURS, NAIVE, AGAIN, WIDE):
            vocabulary = options.vocab * (10 if name == WIDE else 1)
            folder = Path(root) / str(vocabulary)
            if not folder.exists():
                alone(save, folder, Size(options.layers, options.width, vocabulary))
            each = [alone(step, name, options, str(folder), vocabulary) for _ in range(options.repeat)]
            found[name] = min(each, key=lambda one: one["peak"])
    return {"options": vars(options), "versions": versions(), "steps": found}


def report(found: dict[str, Any]) -> str:
    """The table."""
    ours = found["steps"][OURS]
    rows = []
    for name, one in found["steps"].items():
        added, base = one["peak"] - one["loaded"], ours["peak"] - ours["loaded"]
        cells = [f"{one['peak']:.0f}", f"{ours['peak'] / one['peak']:.2f}", f"{added:.0f}", f"{added / base:.2f}"]
        rows.append([name, *cells])
    return table(["step", "peak MB", "mmprefix's / it", "added by the step MB", "of mmprefix's"], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--prefix-length", type=int, default=40)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args(arguments)
    found = measured(options)
    print(report(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
