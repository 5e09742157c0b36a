"""Trains a small encoder of sounds or pictures from nothing but a labelled manifest, where no large one can be had.

Only rows of split `train` are trained on. Sounds: the network of `mmprefix.encoders.cnn`, by classification of
`label`. Pictures: a ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385) for `mmprefix.encoders.vit`, by
the words of its captions, or by what is true of an NLVR scene. Weights are averaged over the last steps.

    python recipes/pretrain_encoder.py --manifest esc10/manifest.jsonl --media audio --label label --out runs/parts/esc10_encoder
    python recipes/pretrain_encoder.py --manifest coco_mini/manifest.jsonl --media image --label captions --out runs/parts/coco_encoder
    python recipes/pretrain_encoder.py --manifest nlvr/manifest.jsonl --media image --scenes nlvr/structured.jsonl --out runs/parts/nlvr_encoder
"""  # noqa: E501

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

from mmprefix.encoders import cnn
from mmprefix.media import read_picture, read_waveform
from mmprefix.recipes import augment, nlvr_scenes

log = logging.getLogger("pretrain_encoder")

Row = dict[str, Any]
Reader = ViTImageProcessor


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train; the learning rate warms up for a tenth of the steps and falls along a cosine."""

    epochs: int = 100
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.4
    average: float = 0.99  # how much of the averaged weights a step keeps
    seed: int = 0


@dataclass
class Task:
    """What ``fit`` trains: inputs by place in the manifest, their targets (N C), and what it takes to read a batch."""

    network: nn.Module
    targets: Tensor
    exclusive: bool  # one class of C, or any number of C tags
    draw: Callable[[Sequence[int]], tuple[Tensor, Tensor]]  # places → summaries (B G) of varied inputs, targets (B C)
    read: Callable[[int], Tensor]  # place → summary (1 G) of the input as it is


def read_rows(manifest: Path) -> list[Row]:
    """The rows of a JSON-lines manifest."""
    with manifest.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def words(row: Row) -> set[str]:
    """The words of all captions of ``row``, in small letters."""
    return {word for caption in row["captions"] for word in re.findall("[a-z]+", caption.lower())}


def indicators(tags: Sequence[set[str]], train: Sequence[int], least: int) -> tuple[list[str], Tensor]:
    """Tags that hold for ``least`` or more of the ``train`` rows but not for all, and which row has which (N C)."""
    counts = Counter(tag for place in train for tag in tags[place])
    names = sorted(tag for tag, count in counts.items() if least <= count <= len(train) - least)
    return names, torch.tensor([[float(name in found) for name in names] for found in tags])


def fit(task: Task, train: Sequence[int], plan: Plan) -> nn.Linear:
    """Trains ``task.network`` in place, together with the classifier that is returned; both end as their averages."""
    torch.manual_seed(plan.seed)
    order = random.Random(plan.seed)
    with torch.no_grad():
        width = task.read(train[0]).shape[1]
    head = nn.Linear(width, task.targets.shape[1])
    model = nn.ModuleList([task.network, head]).train()
    average = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), plan.lr, weight_decay=plan.weight_decay)
    steps = max(1, len(train) // plan.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.lr, plan.epochs * steps, pct_start=0.1)
    began, loss = time.monotonic(), torch.zeros(())
    for epoch in range(plan.epochs):
        places = order.sample(list(train), len(train))
        for step in range(steps):
            summary, targets = task.draw(places[step * plan.batch_size :][: plan.batch_size])
            logits = head(F.dropout(summary, plan.dropout))
            loss = F.cross_entropy(logits, targets) if task.exclusive else _tag_loss(logits, targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            done = epoch * steps + step
            _follow(average, model, min(plan.average, (1 + done) / (10 + done)))
        if epoch % 10 == 9:
            log.info("epoch %d/%d  loss %.3f  %.0f s", epoch + 1, plan.epochs, loss.item(), time.monotonic() - began)
    model.load_state_dict(average.state_dict())
    model.eval()
    return head


def _tag_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    for mean, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(new, 1 - keep)
        else:
            mean.copy_(new)


@torch.no_grad()
def measure(task: Task, head: nn.Linear, places: Sequence[int]) -> float:
    """Accuracy of the class, or mean average precision over the tags that occur, on inputs as they are."""
    logits = torch.cat([head(task.read(place)) for place in places])
    targets = task.targets[list(places)]
    if task.exclusive:
        return (logits.argmax(1) == targets.argmax(1)).float().mean().item()
    found = targets.gather(0, logits.argsort(0, descending=True))  # (N C), best first
    precision = found.cumsum(0) / torch.arange(1, len(found) + 1)[:, None]
    occurs = found.sum(0) > 0
    return ((precision * found).sum(0)[occurs] / found.sum(0)[occurs]).mean().item()


def sounds(rows: Sequence[Row], root: Path, targets: Tensor, train: Sequence[int], sizes: cnn.Sizes) -> Task:
    """Sounds as mel power in memory; the network's first statistics are those of the ``train`` clips."""
    net = cnn.MelNet(sizes)
    clips = [read_waveform(root / row["audio"], sizes.rate, row.get("start") or 0.0, row.get("end")) for row in rows]
    with torch.no_grad():
        power = [net.spectrogram(clip[None], torch.tensor([len(clip)]))[0][0] for clip in clips]
        bands = torch.log(torch.cat([power[place] for place in train], 1) + sizes.floor)
        net.norm.running_mean, net.norm.running_var = bands.mean(1), bands.var(1)
    columns = int(torch.tensor([power[place].shape[1] for place in train]).median())

    def draw(places: Sequence[int]) -> tuple[Tensor, Tensor]:
        varied = torch.stack([augment.vary_sound(power[place], columns) for place in places])
        mixed, shares = augment.mix_sounds(varied, targets[list(places)])
        bands = augment.hide_bands(net.norm(torch.log(mixed + sizes.floor)), most_time=columns // 10)
        return net.read(bands, torch.full((len(places),), columns)).pooled, shares

    def read(place: int) -> Tensor:
        return net.eval()(power[place][None], torch.tensor([power[place].shape[1]])).pooled

    return Task(net, targets, True, draw, read)


def pictures(rows: Sequence[Row], root: Path, targets: Tensor, net: ResNetModel, reader: Reader, drawn: bool) -> Task:
    """Pictures as processed pixels in memory; ``drawn`` NLVR scenes are varied in no way that makes a tag false."""
    pixels = [reader(read_picture(root / row["image"]), return_tensors="pt")["pixel_values"][0] for row in rows]

    def draw(places: Sequence[int]) -> tuple[Tensor, Tensor]:
        vary = nlvr_scenes.shuffle_boxes if drawn else augment.vary_picture
        batch, shares = torch.stack([vary(pixels[place]) for place in places]), targets[list(places)]
        if not drawn:
            batch, shares = augment.mix_pictures(batch, shares)
        return net(batch).pooler_output.flatten(1), shares

    def read(place: int) -> Tensor:
        return net.eval()(pixels[place][None]).pooler_output.flatten(1)

    return Task(net, targets, False, draw, read)


def split_rows(rows: Sequence[Row], report: str, folds: Sequence[int]) -> tuple[list[Row], list[int], list[int]]:
    """The rows that count, the places of those to train on, and of those only to report on (split ``report``).

    With ``folds``, all are rows of split train: those of the named folds to train on, the others to report on.
    """
    if folds:
        rows = [row | {"split": "train" if row["fold"] in folds else report} for row in rows if row["split"] == "train"]
    rows = [row for row in rows if row["split"] in ("train", report)]
    train = [place for place, row in enumerate(rows) if row["split"] == "train"]
    return list(rows), train, sorted(set(range(len(rows))) - set(train))


def train_encoder(options: argparse.Namespace) -> dict[str, Any]:
    """Trains what the command line asks for, writes ``options.out``, and returns its `training.json`."""
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
    torch.manual_seed(plan.seed)
    rows, train, rest = split_rows(read_rows(options.manifest), options.report, options.folds)
    root, sound = options.manifest.parent, options.media == "audio"
    if options.scenes:
        found = nlvr_scenes.read_tags(options.scenes, [row["id"] for row in rows])
        tags = [found[row["id"]] for row in rows]
    else:
        tags = [words(row) if options.label == "captions" else {str(row[options.label])} for row in rows]
    names, targets = indicators(tags, train, 1 if sound else options.least)
    channels = tuple(options.channels)
    reader = ViTImageProcessor(size={"height": options.size[0], "width": options.size[1]})
    began = time.monotonic()
    if sound:
        task = sounds(rows, root, targets, train, cnn.Sizes(hop=800, channels=channels, summary=channels[-1]))
    else:
        net = ResNetModel(resnet(channels))
        task = pictures(rows, root, targets, net, reader, options.scenes is not None)
    log.info("%d inputs to train on, %d others, %d labels", len(train), len(rest), len(names))
    head = fit(task, train, plan)
    if isinstance(task.network, ResNetModel):
        task.network.save_pretrained(options.out)
        reader.save_pretrained(options.out)
    else:
        assert isinstance(task.network, cnn.MelNet)
        cnn.save(task.network, options.out)
    result = {
        "labels": names,
        "plan": asdict(plan),
        "inputs": len(train),
        "parameters": sum(value.numel() for value in task.network.parameters()),
        "measure": "accuracy" if sound else "mean average precision",
        "train": measure(task, head, train),
        options.report: measure(task, head, rest) if rest else None,
        "seconds": round(time.monotonic() - began),
    }
    (options.out / "training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def resnet(channels: Sequence[int]) -> ResNetConfig:
    """A ResNet of one plain block a stage; each stage after the first halves the map, which starts at a quarter."""
    return ResNetConfig(
        embedding_size=channels[0], hidden_sizes=list(channels), depths=[1] * len(channels), layer_type="basic"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True, help="JSON lines; only its split train is trained on")
    parser.add_argument("--media", choices=["audio", "image"], required=True)
    parser.add_argument("--label", default="label", help="the field to tell apart; captions: the words of pictures")
    parser.add_argument("--scenes", type=Path, help="NLVR's structured.jsonl: labels are what is true of each scene")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--report", default="val", help="a split to measure on at the end, never used otherwise")
    parser.add_argument("--folds", type=int, nargs="*", default=[], help="train on these folds, report on the others")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128], help="width of each stage")
    parser.add_argument("--size", type=int, nargs=2, default=[128, 128], help="height and width of pictures")
    parser.add_argument("--least", type=int, default=10, help="pictures that a word or tag must occur in")
    parser.add_argument("--epochs", type=int, default=Plan.epochs)
    parser.add_argument("--batch-size", type=int, default=Plan.batch_size)
    parser.add_argument("--lr", type=float, default=Plan.lr, help="highest learning rate")
    parser.add_argument("--dropout", type=float, default=Plan.dropout)
    parser.add_argument("--weight-decay", type=float, default=Plan.weight_decay)
    parser.add_argument("--average", type=float, default=Plan.average, help="share of the mean weights a step keeps")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = train_encoder(parser.parse_args(argv))
    print(json.dumps({name: value for name, value in result.items() if name != "labels"}))


if __name__ == "__main__":
    main()
