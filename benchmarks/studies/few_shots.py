"""Few shots across the senses on CIFAR-10: pictures alone against pictures and class names in one aligned space.

    python -m mmprefix.recipes.align.train --config recipes/align/flickr8k_mini.yaml --manifest ../shared/data/flickr8k_mini/manifest.jsonl --out runs/parts/aligned
    python -m benchmarks.studies.few_shots ../shared/data/cifar10/manifest.jsonl --aligned runs/parts/aligned --out few_shots.json

Lin et al., https://arxiv.org/abs/2301.06267, with EfficientNet-lite2 and MiniLM behind learned projections in the place of
CLIP. Pictures alone begin at random, pictures and texts at the zero-shot weights; one best setting of the grid a run, by
few-shot validation. Prints a table of test accuracy, mean and standard deviation over seeds and draws, and writes JSON.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from mmprefix.encoders.aligned import AlignedSpace
from mmprefix.media.source import Texts
from mmprefix.recipes.align.summaries import summaries
from mmprefix.training.few_shots import grid as training
from mmprefix.training.few_shots import heads as kinds
from mmprefix.training.few_shots.samples import VALIDATED, Run, Shots, draw_shots

HEADS = {"linear": training.LINEAR, "adapter": training.ADAPTER, "partial": training.PARTIAL}
ALONE, BOTH, WISE = "image", "image + text", "image + text, WiSE-FT"


@dataclass(frozen=True)
class Pools:
    """Pictures to draw shots from, to validate on and to test on, and the texts of the classes; rows before scaling.

    ``layer`` is the linear projection of pictures where rows are its inputs, for partial heads.
    """

    train: Shots
    val: Shots
    test: Shots
    text: Shots
    classes: int
    layer: Tensor | None = None

    @property
    def zero_shot(self) -> Tensor:
        """Weights (C W) of the class names alone."""
        return kinds.zero_shot_start(self.text, self.classes)


def read_pools(manifest: Path, space: AlignedSpace, cache: Path, *, most: int, partial_head: bool) -> Pools:
    """Rows of the pictures, at most ``most`` a class of split train, and of the template sentences of each class."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    names = sorted({row["label"] for row in rows})
    image, text = space.projections.of("image"), space.projections.of("text")
    read = image.standardised if partial_head else image.projected

    def pictures(split: str, most: int | None = None) -> Shots:
        taken = [[row for row in rows if (row["split"], row["label"]) == (split, name)][:most] for name in names]
        files = [str(manifest.parent / row["image"]) for several in taken for row in several]
        labels = [number for number, several in enumerate(taken) for _ in several]
        return Shots(read(summaries(space.encoders["image"], files, cache)), torch.tensor(labels))

    sentences = [sorted({text for row in rows if row["label"] == name for text in row["captions"]}) for name in names]
    texts = [Texts((sentence,)) for several in sentences for sentence in several]
    labels = torch.tensor([number for number, several in enumerate(sentences) for _ in several])
    written = Shots(text.projected(summaries(space.encoders["text"], texts, cache)), labels)
    layer = image.linear.weight if partial_head else None
    return Pools(pictures("train", most), pictures("val"), pictures("test"), written, len(names), layer)


def draw_runs(pools: Pools, shots: int, seeds: int, draws: int, *, text: bool) -> list[Run]:
    """A run for each seed (start, order of batches) and draw (which pictures): the same ones with and without text."""
    runs: list[Run] = []
    for seed in range(seeds):
        for draw in range(draws):
            number = seed * draws + draw
            own, val = draw_shots(pools.train, shots, number), draw_shots(pools.val, min(VALIDATED, shots), number)
            start = pools.zero_shot if text else kinds.random_start(pools.classes, pools.zero_shot.shape[1], seed)
            runs.append(Run(own, val, start, pools.text if text else None, seed))
    return runs


def accuracies(pools: Pools, heads: Sequence[kinds.Heads]) -> list[float]:
    """Test accuracy of each head, in per cent."""
    return [100 * float(head.accuracy(pools.test.rows[None], pools.test.labels[None])) for head in heads]


def study(pools: Pools, head: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of shots: test accuracies of each way by run, and validation curves."""
    make: Callable[[Tensor], kinds.Heads] = kinds.AdapterHeads if head == "adapter" else kinds.LinearHeads
    if pools.layer is not None:
        make = partial(kinds.PartialHeads, layer=pools.layer)
    rows: list[dict[str, Any]] = []
    for shots in options.shots:
        began, row = time.monotonic(), dict[str, Any](shots=shots, head=head)
        for way, text in ((ALONE, False), (BOTH, True)):
            runs = draw_runs(pools, shots, options.seeds, options.draws, text=text)
            fitted = training.fit_best(make, runs, HEADS[head], iterations=options.iterations)
            row[way] = accuracies(pools, [one.heads for one in fitted])
            row[f"{way}/iterations"] = [one.iteration for one in fitted]
            row[f"{way}/settings"] = [list(one.setting) for one in fitted]
            curves = torch.tensor([one.curve for one in fitted]).mean(0)
            row[f"{way}/curve"] = [round(float(value), 4) for value in curves]
            if text:
                row[WISE] = accuracies(pools, [kinds.wise_ft(one.heads, pools.zero_shot) for one in fitted])
        row["seconds"] = round(time.monotonic() - began, 1)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def zero_shot(pools: Pools) -> float:
    """Test accuracy of the weights that the class names alone make, in per cent."""
    head = kinds.LinearHeads if pools.layer is None else partial(kinds.PartialHeads, layer=pools.layer)
    return accuracies(pools, [head(pools.zero_shot[None])])[0]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def line(row: dict[str, Any]) -> str:
    """Row of the table: each way, the gain of text a run, and in how many runs there is one."""
    gains = [both - alone for both, alone in zip(row[BOTH], row[ALONE], strict=True)]
    cells = [row["head"], str(row["shots"]), *(spread(row[way]) for way in (ALONE, BOTH, WISE)), spread(gains)]
    return f"| {' | '.join(cells)} | {sum(gain > 0 for gain in gains)}/{len(gains)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("manifest", type=Path, help="cifar10/manifest.jsonl")
    parser.add_argument("--aligned", type=Path, required=True, help="folder of the aligned space")
    parser.add_argument("--cache", type=Path, default=Path("features"), help="folder of the feature store")
    parser.add_argument("--head", nargs="+", choices=tuple(HEADS), default=["linear"])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3, help="starts and orders of batches (default: 3)")
    parser.add_argument("--draws", type=int, default=3, help="draws of pictures for each seed (default: 3)")
    parser.add_argument("--iterations", type=int, default=training.ITERATIONS, help="default: 12,800, as published")
    parser.add_argument("--pool", type=int, default=100, help="pictures a class that shots are drawn from")
    parser.add_argument("--out", type=Path, help="file for all figures, JSON")
    options = parser.parse_args(argv)
    space, rows = AlignedSpace.load(options.aligned), list[dict[str, Any]]()
    head_line = f"| head | shots | {ALONE} | {BOTH} | {WISE} | gain of text | runs with a gain |"
    print(f"{head_line}\n|{'---|' * 7}")
    names_alone = 0.0
    for head in options.head:
        pools = read_pools(options.manifest, space, options.cache, most=options.pool, partial_head=head == "partial")
        rows += study(pools, head, options)
        names_alone = zero_shot(pools)
    print(f"\nclass names alone, no picture: {names_alone:.1f}")
    if options.out:
        options.out.write_text(json.dumps({"zero_shot": names_alone, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
