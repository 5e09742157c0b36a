"""Gain of mmprefix's training step over the naive one, by prefix, captions, batch, caption length and decoder size.

    python -m benchmarks.scaling --sweep prefix captions batch length decoder --repeat 3

One thing is varied at a time around a base: ClipCap's transformer mapper, a prefix of 40, 20 captions, 5 an input, 12
tokens a caption, GPT-2 small's sizes with fewer layers. That both sides compute the same loss and gradients is checked
at every point before it is timed. The naive step makes logits of every position, 90 MB a caption with all else at the
base: it takes ``--at-once`` captions at a time and accumulates gradients, with an AdamW step for each of these parts.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.compare_gradients import compare_gradients
from benchmarks.lib.random_gpt2 import Gpt2Size, save_gpt2
from benchmarks.lib.report import benchmark_parser, markdown_table, options_of, publish, versions
from benchmarks.lib.timing import interleave
from benchmarks.lib.train_variants import TrainStep, naive_loss, shared_prefix_loss
from benchmarks.lib.workload import CaptionBatch, draw_workload, select_rows
from benchmarks.train_step import CASES


@dataclass(frozen=True)
class Point:
    """Sizes at which the step is measured."""

    prefix: int = 40
    batch: int = 20
    captions: int = 5
    length: int = 12
    layers: int = 4
    width: int = 768
    vocabulary: int = 50257


SWEEPS: dict[str, list[dict[str, int]]] = {
    "prefix": [{"prefix": n} for n in (10, 20, 40, 80, 160)],
    "captions": [{"captions": n} for n in (1, 2, 4, 5)],
    "batch": [{"batch": n} for n in (5, 20, 60, 120, 255)],
    "length": [{"length": n} for n in (12, 20, 30)],
    "decoder": [{"layers": layers, "width": width} for layers, width in ((2, 128), (4, 384), (4, 768), (12, 768))],
}


def split_batch(batch: CaptionBatch, at_once: int) -> list[CaptionBatch]:
    """Parts of ``batch``, each of at most ``at_once`` captions, but of one input at least."""
    inputs = max(1, at_once // len(batch.texts[0]))
    starts = range(0, len(batch.texts), inputs)
    parts = [range(start, min(start + inputs, len(batch.texts))) for start in starts]
    return [CaptionBatch(select_rows(batch.features, list(rows)), [batch.texts[i] for i in rows]) for rows in parts]


def measure_point(point: Point, repeat: int, at_once: int) -> dict[str, Any]:
    """Times of both sides at one point."""
    options = argparse.Namespace(features=512, prefix_length=point.prefix, vocab=point.vocabulary, words=0)
    case = CASES["transformer"](options)
    with tempfile.TemporaryDirectory() as folder:
        save_gpt2(Path(folder), Gpt2Size(point.layers, point.width, point.vocabulary))
        torch.manual_seed(0)
        workload = draw_workload(
            point.captions, point.batch, point.vocabulary, case.features, pool=1, mean=point.length
        )
        batch, mapper, decoder = workload.median, case.mapper(point.width), case.decoder(folder)
        optimizer = torch.optim.AdamW(mapper.parameters(), lr=0.0, fused=True)
        naive = naive_loss(mapper, None, folder, weight_gradients=True)
        steps = {
            "mmprefix": TrainStep(shared_prefix_loss(mapper, decoder), optimizer, [batch]),
            "naive": TrainStep(naive, optimizer, split_batch(batch, at_once)),
        }
        comparison = compare_gradients(steps, dict.fromkeys(steps, "mmprefix"), mapper, decoder)
        times = interleave(steps, repeat)
    loss_error, gradient_error = comparison.errors("naive")
    return {
        **vars(point),
        **{name: taken.as_dict() for name, taken in times.items()},
        "loss_error": loss_error,
        "gradient_error": gradient_error,
        "ratio": times["naive"].median / times["mmprefix"].median,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times of both sides at every point of the sweeps."""
    base = Point()
    if options.tiny:
        base = replace(base, layers=2, width=64, vocabulary=300, prefix=4, batch=10)
    sweeps = {
        name: [
            measure_point(replace(base, **changes), options.repeat, options.at_once)
            for changes in SWEEPS[name][: options.points]
        ]
        for name in options.sweep
    }
    return {"options": options_of(options), "versions": versions(), "sweeps": sweeps}


def report(results: dict[str, Any]) -> str:
    """One table a sweep."""
    tables = []
    for name, points in results["sweeps"].items():
        varied = ["layers", "width"] if name == "decoder" else [name]
        rows = [
            [
                " x ".join(str(point[key]) for key in varied),
                f"{point['mmprefix']['cpu_median']:.3g}",
                f"{point['naive']['cpu_median']:.3g}",
                f"{point['ratio']:.2f}",
            ]
            for point in points
        ]
        tables.append(markdown_table([name, "mmprefix, CPU s", "naive, CPU s", "x"], rows))
    return "\n\n".join(tables)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--sweep", nargs="+", choices=sorted(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--points", type=int, help="number of points of each sweep, from the first")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a test run")
    parser.add_argument("--at-once", type=int, default=60, help="captions that the naive step takes at once")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = measure(options)
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
