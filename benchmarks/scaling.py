"""How the gain of a training step changes with what is trained on: mmprefix against the naive algorithm.

    python -m benchmarks.scaling --sweep prefix captions batch length decoder --repeat 3

One thing is varied at a time around a base: ClipCap's transformer mapper, a prefix of 40, 20 captions, 5 an input, 12
tokens a caption, GPT-2 small's sizes with fewer layers. That both sides compute the same loss and gradients is checked
at every point before it is timed. The naive step makes logits of every position, 90 MB a caption with all else at the
base: it takes ``--at-once`` captions and adds gradients up, which costs it an AdamW step more for each of these parts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import train_step
from benchmarks.lib import workload
from benchmarks.lib.random_gpt2 import Size, save
from benchmarks.lib.timing import in_turn, table, versions


@dataclass(frozen=True)
class Point:
    """Where the step is measured."""

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


def parts(work: workload.Captioned, at_once: int) -> list[workload.Captioned]:
    """``work`` in parts of at most so many captions, but at least one input."""
    inputs = max(1, at_once // len(work.texts[0]))
    starts = range(0, len(work.texts), inputs)
    rows = [range(start, min(start + inputs, len(work.texts))) for start in starts]
    return [workload.Captioned(workload.take(work.features, list(r)), [work.texts[i] for i in r]) for r in rows]


def ratio(point: Point, repeat: int, at_once: int) -> dict[str, Any]:
    """Times of both sides at one point."""
    options = argparse.Namespace(features=512, prefix_length=point.prefix, vocab=point.vocabulary, words=0)
    case = train_step.CASES["transformer"](options)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), Size(point.layers, point.width, point.vocabulary))
        torch.manual_seed(0)
        work = workload.draw(point.captions, point.batch, point.vocabulary, case.features, 1, mean=point.length).middle
        mapper, decoder = case.mapper(point.width), case.decoder(folder)
        rate = torch.optim.AdamW(mapper.parameters(), lr=0.0, fused=True)
        ours = train_step.Step(train_step.shared(mapper, decoder), rate, [work])
        published = train_step.naive(mapper, None, folder, into_weights=True)
        both = {"mmprefix": ours, "naive": train_step.Step(published, rate, parts(work, at_once))}
        same = train_step.compared(both, dict.fromkeys(both, "mmprefix"), mapper, decoder)
        times = in_turn(both, repeat)
    loss_error, gradient_error = same.errors("naive")
    return {
        **vars(point),
        **{name: one.as_dict() for name, one in times.items()},
        "loss_error": loss_error,
        "gradient_error": gradient_error,
        "ratio": times["naive"].median / times["mmprefix"].median,
    }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All points of the sweeps that were asked for."""
    base = Point()
    if options.tiny:
        base = replace(base, layers=2, width=64, vocabulary=300, prefix=4, batch=10)
    found = {
        name: [
            ratio(replace(base, **changes), options.repeat, options.at_once)
            for changes in SWEEPS[name][: options.points]
        ]
        for name in options.sweep
    }
    return {"options": vars(options), "versions": versions(), "sweeps": found}


def report(found: dict[str, Any]) -> str:
    """A table a sweep."""
    tables = []
    for name, points in found["sweeps"].items():
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
        tables.append(table([name, "mmprefix, CPU s", "naive, CPU s", "x"], rows))
    return "\n\n".join(tables)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the tables, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="+", choices=sorted(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--points", type=int, help="only the first so many of each")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--at-once", type=int, default=60, help="captions that the naive step takes at once")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = measured(options)
    print(report(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
