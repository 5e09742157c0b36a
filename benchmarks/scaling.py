"""How the gain of a training step changes with what is trained on: mmprefix against the naive algorithm.

    python benchmarks/scaling.py --sweep prefix captions batch length decoder --repeat 3

One thing is varied at a time around a base: ClipCap's transformer mapper, a prefix of 40, 20 captions, 5 an input, 12
tokens a caption, GPT-2 small's sizes with fewer layers. Both sides compute the same loss and gradients.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import captions
import torch
import train_step
from measure import in_turn, table, versions
from random_gpt2 import Size, save


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


def ratio(point: Point, repeat: int) -> dict[str, Any]:
    """Times of both sides at one point."""
    options = argparse.Namespace(features=512, prefix_length=point.prefix, vocab=point.vocabulary, words=0)
    case = train_step.CASES["transformer"](options)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), Size(point.layers, point.width, point.vocabulary))
        torch.manual_seed(0)
        work = captions.draw(point.captions, point.batch, point.vocabulary, case.features, 1, mean=point.length).middle
        mapper, decoder = case.mapper(point.width), case.decoder(folder)
        rate = torch.optim.AdamW(mapper.parameters(), lr=0.0, fused=True)
        ours = train_step.Step(train_step.shared(mapper, decoder), rate, [work])
        naive = train_step.Step(train_step.naive(mapper, None, folder, into_weights=True), rate, [work])
        ours()
        naive()
        times = in_turn({"mmprefix": ours, "naive": naive}, repeat)
    return {
        **vars(point),
        **{name: one.as_dict() for name, one in times.items()},
        "ratio": times["naive"].median / times["mmprefix"].median,
    }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All points of the sweeps that were asked for."""
    base = Point()
    if options.tiny:
        base = replace(base, layers=2, width=64, vocabulary=300, prefix=4, batch=10)
    found = {
        name: [ratio(replace(base, **changes), options.repeat) for changes in SWEEPS[name][: options.points]]
        for name in options.sweep
    }
    return {"options": vars(options), "versions": versions(), "sweeps": found}


def report(found: dict[str, Any]) -> str:
    """A table a sweep."""
    parts = []
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
        parts.append(table([name, "mmprefix, CPU s", "naive, CPU s", "x"], rows))
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the tables, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="+", choices=sorted(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--points", type=int, help="only the first so many of each")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
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
