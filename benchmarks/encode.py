"""What a feature store saves: the second epoch of a training with and without it, and what it takes to fill it.

    python -m benchmarks.encode --pictures 64 --captions 1 5 --repeat 3

Noise as JPEG files, a CLIP of ViT-B/32's sizes and a GPT-2 of the size asked for, both with random weights, ClipCap's
MLP, one thread; the training is the CLI's own. Times are those of the second epoch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from safetensors.torch import save_file

from benchmarks.lib.random_gpt2 import Size, save
from benchmarks.lib.timing import table, versions
from mmprefix.cli.main import main as shell


class Clock(Callback):
    """Writes the processor and wall time of each epoch to ``file``."""

    def __init__(self, file: str) -> None:
        self.file, self.times = Path(file), list[tuple[float, float]]()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.process_time(), time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cpu, wall = self.began
        self.times.append((time.process_time() - cpu, time.perf_counter() - wall))
        self.file.write_text(json.dumps(self.times), encoding="utf-8")


def make(folder: Path, options: argparse.Namespace) -> None:
    """Pictures, manifests, encoder and decoder."""
    random = np.random.default_rng(0)
    for number in range(options.pictures):
        pixels = random.integers(0, 256, (options.pixels // 8, options.pixels // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((options.pixels, options.pixels), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)
    for captions in options.captions:
        rows = [
            {
                "id": str(number),
                "image": f"{number}.jpg",
                "captions": [
                    " ".join(f"w{i}" for i in random.integers(1, options.vocab - 1, max(2, int(random.normal(11, 3)))))
                    for _ in range(captions)
                ],
            }
            for number in range(options.pictures)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{captions}.jsonl").write_text(lines, encoding="utf-8")
    save(folder / "decoder", Size(options.layers, options.width, options.vocab))
    save_clip(folder / "encoder", options.encoder_layers, options.encoder_width)


def save_clip(folder: Path, layers: int, width: int) -> None:
    """A random CLIP whose picture half has ViT-B/32's form, as open_clip publishes its models."""
    torch.manual_seed(0)
    sees = {"image_size": 224, "patch_size": 32, "layers": layers, "width": width, "head_width": min(64, width)}
    reads = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": 512, "vision_cfg": sees, "text_cfg": reads}
    colours = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    folder.mkdir()
    told = json.dumps({"model_cfg": config, "preprocess_cfg": {"size": 224, **colours}})
    (folder / "open_clip_config.json").write_text(told, encoding="utf-8")
    weights = open_clip.CLIP(**json.loads(told)["model_cfg"]).state_dict()
    weights = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def recipe(folder: Path, captions: int, options: argparse.Namespace) -> Path:
    """The training, for so many captions a step."""
    encoder = {"class_path": "mmprefix.encoders.clip.Clip", "init_args": {"model": str(folder / "encoder")}}
    mapper = {"class_path": "mmprefix.mappers.mlp.MLP", "init_args": {"length": 10}}
    decoder = {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": str(folder / "decoder")}}
    rows = {"train": str(folder / f"{captions}.jsonl"), "batch_size": max(1, options.batch // captions)}
    trainer = {"max_epochs": 2, "accelerator": options.accelerator, "precision": options.precision, "devices": 1}
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "default_root_dir": str(folder / "run")}
    quiet |= {"logger": False, "enable_progress_bar": False}
    clock = {
        "callbacks": [{"class_path": "benchmarks.encode.Clock", "init_args": {"file": str(folder / "clock.json")}}]
    }
    made = {
        "seed_everything": 0,
        "model": {"branches": {"image": {"encoder": encoder, "mapper": mapper}}, "decoder": decoder},
        "data": {"class_path": "mmprefix.data.PairData", "init_args": rows},
        "trainer": {**trainer, **quiet, **clock},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return folder / "recipe.yaml"


def run(folder: Path, words: list[str]) -> None:
    """A verb on the recipe; ends the program where it fails."""
    if shell([words[0], "--config", str(folder / "recipe.yaml"), *words[1:]]):
        raise SystemExit(f"mmprefix {words[0]} failed")


def timed(folder: Path, words: list[str]) -> tuple[float, float]:
    """Processor and wall time of a verb."""
    cpu, wall = time.process_time(), time.perf_counter()
    run(folder, words)
    return time.process_time() - cpu, time.perf_counter() - wall


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    make(folder, options)
    found: dict[str, Any] = {"options": vars(options), "versions": versions(), "epochs": [], "filling": []}
    recipe(folder, options.captions[0], options)
    run(folder, ["fit", "--dry_run=true"])  # what is imported on the way is not counted
    for dtype in ("float16", "float32"):
        words = ["encode", "--cache", str(folder / "cache"), "--cache_dtype", dtype]
        (cpu, wall), again = timed(folder, words), timed(folder, words)  # the second finds all of it there
        size = sum(file.stat().st_size for file in (folder / "cache").rglob("*.safetensors"))
        taken = {"cpu_s": cpu, "wall_s": wall, "again_cpu_s": again[0], "again_wall_s": again[1]}
        found["filling"].append({"dtype": dtype, **taken, "bytes_so_far": size})
    for captions in options.captions:
        recipe(folder, captions, options)
        times: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
        for _ in range(options.repeat):
            for name, words in (("with", ["--cache", str(folder / "cache")]), ("without", [])):
                run(folder, ["fit", *words])
                times[name].append(json.loads((folder / "clock.json").read_text(encoding="utf-8"))[1])
        found["epochs"].append({"captions": captions, **times})
    return found


def report(found: dict[str, Any]) -> str:
    """The tables."""
    count = found["options"]["pictures"]
    rows = []
    for epoch in found["epochs"]:
        cpu = {name: median(one for one, _ in epoch[name]) / count for name in ("with", "without")}
        wall = {name: median(one for _, one in epoch[name]) / count for name in ("with", "without")}
        cells = [f"{1000 * side[name]:.3g}" for side in (cpu, wall) for name in ("without", "with")]
        counts = cpu if found["options"].get("accelerator", "cpu") == "cpu" else wall
        rows.append(
            [str(epoch["captions"]), cells[0], cells[1], *cells[2:], f"{counts['without'] / counts['with']:.2f}"]
        )
    head = ["captions a picture", "without, CPU ms a picture", "with the store", "without, wall ms", "with", "x"]
    text, before = table(head, rows), 0
    for one in found["filling"]:
        size, before = one["bytes_so_far"] - before, one["bytes_so_far"]
        text += f"\n\nFilling as {one['dtype']}: {1000 * one['cpu_s'] / count:.0f} CPU ms a picture with start-up, "
        text += f"{size / count:.0f} bytes a picture on disk."
        if "again_cpu_s" in one:
            cpu, wall = (one[f"{kind}_s"] - one[f"again_{kind}_s"] for kind in ("cpu", "wall"))
            text += (
                f" Without start-up {1000 * cpu / count:.0f} CPU ms a picture, {count / wall:.3g} pictures a second."
            )
    return text


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the tables, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--pixels", type=int, default=480)
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--batch", type=int, default=20, help="captions a step")
    parser.add_argument("--encoder-layers", type=int, default=12)
    parser.add_argument("--encoder-width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--accelerator", default="cpu", help="cpu or gpu, of the training and of the filling")
    parser.add_argument("--precision", default="32-true", help="of the training, for example bf16-mixed")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    print(report(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
