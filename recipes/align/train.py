"""Learn one space for pictures and texts from pairs: two projections behind frozen encoders, by contrast, as CLIP's.

Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020. Features are
encoded once and kept; a training is then a matter of seconds. Recall is reported on val, with --test on test too.

    python -m mmprefix.recipes.align.train --config recipes/align/flickr8k_mini.yaml --manifest manifest.jsonl --out runs/parts/aligned
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from mmprefix.data.manifest import read_manifest
from mmprefix.encoders.aligned import AlignedSpace, Projections
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.media.source import Texts
from mmprefix.metrics.retrieval import both_ways
from mmprefix.parts import from_recipe
from mmprefix.recipes.align.summaries import summaries
from mmprefix.recipes.pretrain.loop import LogLines, every_hundred, train
from mmprefix.recipes.pretrain.plan import read_plan, run

log = logging.getLogger("align")
IMAGE, TEXT = "image", "text"


@dataclass(frozen=True)
class AlignPlan:
    """Settings of a training; the rate warms up for a tenth of the steps and falls along a cosine."""

    width: int = 256
    drop: float = 0.5  # share of the standardised features that a step leaves out
    epochs: int = 60
    batch_size: int = 350
    lr: float = 1e-3
    weight_decay: float = 0.1
    seed: int = 0


class Pairs(NamedTuple):
    """Summaries of N pictures (N G), of their M captions (M G'), and the picture ``owner`` (M) of each caption."""

    image: Tensor
    text: Tensor
    owner: Tensor


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Vectors of length 1 of B pairs (B W), (B W) → CLIP's loss.

    Each picture is to find its text among those of the batch by cosine times ``scale``, and each text its picture; the
    mean of the two cross-entropies.
    """
    logits = scale * image @ text.T
    pair = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pair) + F.cross_entropy(logits.T, pair)) / 2


def read_pairs(manifest: Path, split: str, encoders: Mapping[str, Encoder], cache: Path) -> Pairs:
    """Summaries of the pictures of a split, and of all their captions. InputError for a bad row."""
    rows, faults = read_manifest(manifest, split)
    if faults:
        raise InputError(str(faults[0]))
    rows = [row for row in rows if IMAGE in row.inputs and row.captions]
    texts = [(Texts((caption,)), number) for number, row in enumerate(rows) for caption in row.captions]
    image = summaries(encoders[IMAGE], [row.inputs[IMAGE].source for row in rows], cache)
    text = summaries(encoders[TEXT], [source for source, _ in texts], cache, 64)
    return Pairs(image, text, torch.tensor([owner for _, owner in texts]))


def draw(pairs: Pairs, plan: AlignPlan) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of summaries (B G), (B G'): each epoch all pictures in another order, each with one of its captions."""
    order = random.Random(plan.seed)
    captions = [torch.nonzero(pairs.owner == number).flatten().tolist() for number in range(len(pairs.image))]
    for _ in range(plan.epochs):
        shuffled = order.sample(range(len(captions)), len(captions))
        for start in range(0, len(shuffled) - plan.batch_size + 1, plan.batch_size):
            batch = shuffled[start : start + plan.batch_size]
            yield pairs.image[batch], pairs.text[[order.choice(captions[number]) for number in batch]]


def fit(pairs: Pairs, plan: AlignPlan) -> Projections:
    """Projections learned from ``pairs``; one batch at least must be full."""
    if len(pairs.image) < plan.batch_size or plan.batch_size < 2:
        raise InputError(
            f"plan.batch_size {plan.batch_size}: give a number from 2 to {len(pairs.image)}, the training pictures"
        )
    torch.manual_seed(plan.seed)
    model = Projections({IMAGE: pairs.image.shape[1], TEXT: pairs.text.shape[1]}, plan.width, plan.drop)
    model.of(IMAGE).observe(pairs.image)
    model.of(TEXT).observe(pairs.text)
    steps = plan.epochs * (len(pairs.image) // plan.batch_size)
    decayed = [part.linear.weight for part in (model.of(IMAGE), model.of(TEXT))]
    groups = [{"params": decayed}, {"params": [model.log_scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, plan.lr, weight_decay=plan.weight_decay)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return contrastive_loss(model.of(IMAGE)(batch[0]), model.of(TEXT)(batch[1]), model.scale)

    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, steps, pct_start=0.1)
    train(
        model, loss, draw(pairs, plan), steps=steps, schedule=schedule, callbacks=[LogLines(log, every_hundred(steps))]
    )
    model.of(IMAGE).take_centre(pairs.image)
    model.of(TEXT).take_centre(pairs.text)
    return model


@torch.no_grad()
def measure(model: Projections, pairs: Pairs) -> dict[str, float]:
    """Recall each way, and the ``gap``: the distance between the mean picture and the mean text."""
    image, text = model.of(IMAGE)(pairs.image), model.of(TEXT)(pairs.text)
    gap = (image.mean(0) - text.mean(0)).norm()
    return both_ways(image, text, pairs.owner) | {"gap": float(gap)}


def align(options: argparse.Namespace) -> dict[str, Any]:
    """Train as the command line asks, write the folder ``options.out``, and return the figures."""
    recipe = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    plan = read_plan(AlignPlan, options.plan, recipe["plan"])
    encoders = {name: from_recipe(recipe["senses"][name], Encoder) for name in (IMAGE, TEXT)}
    splits = ["train", "val", *(["test"] if options.test else [])]
    pairs = {split: read_pairs(options.manifest, split, encoders, options.cache) for split in splits}
    began = time.monotonic()
    model = fit(pairs["train"], plan)
    figures: dict[str, Any] = {split: measure(model, pairs[split]) for split in splits[1:]}
    figures |= {"plan": asdict(plan), "temperature": 1 / float(model.scale.detach())}
    figures |= {"pictures": len(pairs["train"].image), "seconds": round(time.monotonic() - began, 1)}
    AlignedSpace(encoders, model, figures).save(options.out)
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="encoders and settings, as in recipes/align")
    parser.add_argument("--manifest", type=Path, required=True, help="pictures with captions and a column split")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--cache", type=Path, default=Path("features"), help="folder of the feature store")
    parser.add_argument("--plan", default="{}", help='settings of the plan to change, as JSON: {"epochs": 30}')
    parser.add_argument("--test", action="store_true", help="measure on split test too")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(json.dumps(align(parser.parse_args(argv)), indent=1))


if __name__ == "__main__":
    run(main)
