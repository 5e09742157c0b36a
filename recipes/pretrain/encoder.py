"""Train a small encoder of sounds or pictures on a labelled manifest alone, where no large one can be had.

Only rows of split `train` are trained on. Sounds: the network of `mmprefix.encoders.cnn`, by classification of
`label`. Pictures: a ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385) for `mmprefix.encoders.vit`, by
the words of its captions, or by the facts of an NLVR scene. Weights are averaged over the last steps.

    python recipes/pretrain/encoder.py --manifest esc10/manifest.jsonl --media audio --label label --out runs/parts/esc10_encoder
    python recipes/pretrain/encoder.py --manifest coco_mini/manifest.jsonl --media image --label captions --out runs/parts/coco_encoder
    python recipes/pretrain/encoder.py --manifest nlvr/manifest.jsonl --media image --scenes nlvr/structured.jsonl --out runs/parts/nlvr_encoder
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

from mmprefix.encoders import cnn
from mmprefix.media.audio import read_waveform
from mmprefix.media.image import read_picture
from mmprefix.recipes.pretrain import augment, nlvr_scenes
from mmprefix.recipes.pretrain.loop import AveragedWeights, LogLines, Losses, train

log = logging.getLogger("pretrain_encoder")

Row = dict[str, Any]


@dataclass(frozen=True)
class EncoderPlan:
    """Training settings; the learning rate warms up for a tenth of the steps and falls along a cosine."""

    epochs: int = 100
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.4
    average: float = 0.99  # share of the averaged weights that a step keeps
    seed: int = 0


@dataclass
class EncoderTask:
    """Network to train, targets (N C) of all inputs of the manifest, and the functions that read inputs by index."""

    network: nn.Module
    targets: Tensor
    exclusive: bool  # one class of C, or any number of C tags
    draw: Callable[[Sequence[int]], tuple[Tensor, Tensor]]  # indices → summaries (B G) of varied inputs, targets (B C)
    read: Callable[[int], Tensor]  # index → summary (1 G) of the input as it is


def read_rows(manifest: Path) -> list[Row]:
    """Rows of a JSON-lines manifest."""
    with manifest.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def words(row: Row) -> set[str]:
    """Words of all captions of ``row``, in small letters."""
    return {word for caption in row["captions"] for word in re.findall("[a-z]+", caption.lower())}


def indicators(tags: Sequence[set[str]], train: Sequence[int], least: int) -> tuple[list[str], Tensor]:
    """Tags that ``least`` or more ``train`` rows have and as many have not, and their indicators (N C)."""
    counts = Counter(tag for index in train for tag in tags[index])
    names = sorted(tag for tag, count in counts.items() if least <= count <= len(train) - least)
    return names, torch.tensor([[float(name in row_tags) for name in names] for row_tags in tags])


def sounds(
    rows: Sequence[Row], root: Path, targets: Tensor, *, train: Sequence[int], sizes: cnn.MelNetSizes
) -> EncoderTask:
    """Task on sounds, mel power in memory; the network's first statistics are those of the ``train`` clips."""
    net = cnn.MelNet(sizes)
    clips = [read_waveform(root / row["audio"], sizes.rate, row.get("start") or 0.0, row.get("end")) for row in rows]
    with torch.no_grad():
        power = [net.spectrogram(clip[None], torch.tensor([len(clip)]))[0][0] for clip in clips]
        bands = torch.log(torch.cat([power[index] for index in train], 1) + sizes.floor)
        net.norm.running_mean, net.norm.running_var = bands.mean(1), bands.var(1)
    columns = int(torch.tensor([power[index].shape[1] for index in train]).median())

    def draw(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        varied = torch.stack([augment.vary_sound(power[index], columns) for index in indices])
        mixed, shares = augment.mix_sounds(varied, targets[list(indices)])
        bands = augment.hide_bands(net.norm(torch.log(mixed + sizes.floor)), most_time=columns // 10)
        return net.read(bands, torch.full((len(indices),), columns)).pooled, shares

    def read(index: int) -> Tensor:
        return net.eval()(power[index][None], torch.tensor([power[index].shape[1]])).pooled

    return EncoderTask(net, targets, True, draw, read)


def pictures(
    rows: Sequence[Row],
    root: Path,
    targets: Tensor,
    *,
    net: ResNetModel,
    processor: ViTImageProcessor,
    drawn: bool,
) -> EncoderTask:
    """Task on pictures, pixels in memory; ``drawn`` NLVR scenes are varied in no way that makes a tag false."""
    pixels = [processor(read_picture(root / row["image"]), return_tensors="pt")["pixel_values"][0] for row in rows]

    def draw(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        vary = nlvr_scenes.shuffle_boxes if drawn else augment.vary_picture
        batch, shares = torch.stack([vary(pixels[index]) for index in indices]), targets[list(indices)]
        if not drawn:
            batch, shares = augment.mix_pictures(batch, shares)
        return net(batch).pooler_output.flatten(1), shares

    def read(index: int) -> Tensor:
        return net.eval()(pixels[index][None]).pooler_output.flatten(1)

    return EncoderTask(net, targets, False, draw, read)


def fit(task: EncoderTask, inputs: Sequence[int], plan: EncoderPlan) -> nn.Linear:
    """Train ``task.network`` in place on ``inputs``, with the classifier that is returned; both end as averages."""
    torch.manual_seed(plan.seed)
    with torch.no_grad():
        width = task.read(inputs[0]).shape[1]
    head = nn.Linear(width, task.targets.shape[1])
    model = nn.ModuleList([task.network, head])
    per_epoch = max(1, len(inputs) // plan.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), plan.lr, weight_decay=plan.weight_decay)
    steps = plan.epochs * per_epoch

    def loss(indices: Sequence[int]) -> Tensor:
        summary, targets = task.draw(indices)
        logits = head(F.dropout(summary, plan.dropout))
        if task.exclusive:
            return F.cross_entropy(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, targets)

    def line(step: int, losses: Losses, seconds: float) -> str | None:
        epoch, left = divmod(step + 1, per_epoch)
        if left or epoch % 10:
            return None
        return f"epoch {epoch}/{plan.epochs}  loss {losses['loss'].item():.3f}  {seconds:.0f} s"

    train(
        model,
        loss,
        _batches(inputs, plan, per_epoch),
        steps=steps,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, steps, pct_start=0.1),
        callbacks=[AveragedWeights(model, plan.average), LogLines(log, line)],
    )
    return head


def _batches(inputs: Sequence[int], plan: EncoderPlan, per_epoch: int) -> Iterator[list[int]]:
    """Batches of indices, epoch after epoch in another order; inputs that fill no batch are left out of an epoch."""
    order = random.Random(plan.seed)
    for _ in range(plan.epochs):
        shuffled = order.sample(list(inputs), len(inputs))
        for step in range(per_epoch):
            yield shuffled[step * plan.batch_size :][: plan.batch_size]


@torch.no_grad()
def measure(task: EncoderTask, head: nn.Linear, inputs: Sequence[int]) -> float:
    """Accuracy of the class, or mean average precision over the tags that occur, on ``inputs`` as they are."""
    logits = torch.cat([head(task.read(index)) for index in inputs])
    targets = task.targets[list(inputs)]
    if task.exclusive:
        return (logits.argmax(1) == targets.argmax(1)).float().mean().item()
    ranked = targets.gather(0, logits.argsort(0, descending=True))  # (N C), best first
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)[:, None]
    occurs = ranked.sum(0) > 0
    return ((precision * ranked).sum(0)[occurs] / ranked.sum(0)[occurs]).mean().item()


def split_rows(rows: Sequence[Row], report: str, folds: Sequence[int]) -> tuple[list[Row], list[int], list[int]]:
    """Rows that count, the indices of those to train on, and of those only to report on (split ``report``).

    With ``folds``, all are rows of split train: those of the named folds to train on, the others to report on.
    """
    if folds:
        rows = [row | {"split": "train" if row["fold"] in folds else report} for row in rows if row["split"] == "train"]
    rows = [row for row in rows if row["split"] in ("train", report)]
    train = [index for index, row in enumerate(rows) if row["split"] == "train"]
    return list(rows), train, sorted(set(range(len(rows))) - set(train))


def labels(rows: Sequence[Row], options: argparse.Namespace) -> list[set[str]]:
    """Labels of each row: facts of its scene, the words of its captions, or the one value of a field."""
    if options.scenes:
        tags = nlvr_scenes.read_tags(options.scenes, [row["id"] for row in rows])
        return [tags[row["id"]] for row in rows]
    return [words(row) if options.label == "captions" else {str(row[options.label])} for row in rows]


def train_encoder(options: argparse.Namespace) -> dict[str, Any]:
    """Train the encoder that the command line asks for, write ``options.out``, and return its `training.json`."""
    plan = EncoderPlan(**{field.name: getattr(options, field.name) for field in fields(EncoderPlan)})
    torch.manual_seed(plan.seed)
    rows, train, rest = split_rows(read_rows(options.manifest), options.report, options.folds)
    sound, channels = options.media == "audio", tuple(options.channels)
    names, targets = indicators(labels(rows, options), train, 1 if sound else options.least)
    processor = ViTImageProcessor(size={"height": options.size[0], "width": options.size[1]})
    began, root = time.monotonic(), options.manifest.parent
    if sound:
        sizes = cnn.MelNetSizes(hop=800, channels=channels, summary=channels[-1])
        task = sounds(rows, root, targets, train=train, sizes=sizes)
    else:
        net, drawn = ResNetModel(resnet(channels)), options.scenes is not None
        task = pictures(rows, root, targets, net=net, processor=processor, drawn=drawn)
    log.info("%d inputs to train on, %d others, %d labels", len(train), len(rest), len(names))
    head = fit(task, train, plan)
    if isinstance(task.network, cnn.MelNet):
        cnn.save(task.network, options.out)
    elif isinstance(task.network, ResNetModel):
        task.network.save_pretrained(options.out)
        processor.save_pretrained(options.out)
    result = {
        "labels": names,
        "plan": asdict(plan),
        "inputs": len(train),
        "parameters": sum(value.numel() for value in task.network.parameters()),
        "measure": "accuracy" if task.exclusive else "mean average precision",
        "train": measure(task, head, train),
        options.report: measure(task, head, rest) if rest else None,
        "seconds": round(time.monotonic() - began),
    }
    (options.out / "training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def resnet(channels: Sequence[int]) -> ResNetConfig:
    """Configure a ResNet, one plain block a stage; stages after the first halve the map, which starts at a quarter."""
    return ResNetConfig(
        embedding_size=channels[0], hidden_sizes=list(channels), depths=[1] * len(channels), layer_type="basic"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
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
    parser.add_argument("--epochs", type=int, default=EncoderPlan.epochs)
    parser.add_argument("--batch-size", type=int, default=EncoderPlan.batch_size)
    parser.add_argument("--lr", type=float, default=EncoderPlan.lr, help="highest learning rate")
    parser.add_argument("--dropout", type=float, default=EncoderPlan.dropout)
    parser.add_argument("--weight-decay", type=float, default=EncoderPlan.weight_decay)
    parser.add_argument(
        "--average", type=float, default=EncoderPlan.average, help="share of the mean weights a step keeps"
    )
    parser.add_argument("--seed", type=int, default=EncoderPlan.seed)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = train_encoder(parser.parse_args(argv))
    print(json.dumps({name: value for name, value in result.items() if name != "labels"}))


if __name__ == "__main__":
    main()
