"""Gain by a feature store: the second epoch of a training with and without it, and the cost of filling it.

    python -m benchmarks.encode --pictures 64 --captions 1 5 --repeat 3

Noise as JPEG files, a CLIP of ViT-B/32's sizes and a GPT-2 of the size asked for, both with random weights, ClipCap's
MLP, one thread; training and filling run ``mmprefix fit`` and ``mmprefix encode``.
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

from benchmarks.lib.random_gpt2 import Gpt2Size, save_gpt2
from benchmarks.lib.report import benchmark_parser, markdown_table, options_of, publish, versions
from mmprefix.cli.main import main as mmprefix


class Clock(Callback):
    """Writes CPU and wall seconds of each training epoch to ``file``."""

    def __init__(self, file: str) -> None:
        self.file, self.times = Path(file), list[tuple[float, float]]()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.process_time(), time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cpu, wall = self.began
        self.times.append((time.process_time() - cpu, time.perf_counter() - wall))
        self.file.write_text(json.dumps(self.times), encoding="utf-8")


def make_data(folder: Path, options: argparse.Namespace) -> None:
    """Write pictures, manifests, encoder and decoder into ``folder``."""
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
    save_gpt2(folder / "decoder", Gpt2Size(options.layers, options.width, options.vocab))
    save_clip(folder / "encoder", options.encoder_layers, options.encoder_width)


def save_clip(folder: Path, layers: int, width: int) -> None:
    """Save a CLIP with random weights in open_clip's format; its picture tower has ViT-B/32's form."""
    torch.manual_seed(0)
    vision = {"image_size": 224, "patch_size": 32, "layers": layers, "width": width, "head_width": min(64, width)}
    text = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    colours = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    folder.mkdir()
    document = json.dumps({"model_cfg": config, "preprocess_cfg": {"size": 224, **colours}})
    (folder / "open_clip_config.json").write_text(document, encoding="utf-8")
    weights = open_clip.CLIP(**json.loads(document)["model_cfg"]).state_dict()
    weights = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def write_recipe(folder: Path, captions: int, options: argparse.Namespace) -> None:
    """Write the recipe of a training with ``captions`` captions a picture, ``options.batch`` captions a step."""
    encoder = {"class_path": "mmprefix.encoders.clip.Clip", "init_args": {"model": str(folder / "encoder")}}
    mapper = {"class_path": "mmprefix.mappers.mlp.MLP", "init_args": {"length": 10}}
    decoder = {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": str(folder / "decoder")}}
    rows = {"train": str(folder / f"{captions}.jsonl"), "batch_size": max(1, options.batch // captions)}
    trainer = {"max_epochs": 2, "accelerator": options.accelerator, "precision": options.precision, "devices": 1}
    trainer |= {"enable_checkpointing": False, "enable_model_summary": False, "default_root_dir": str(folder / "run")}
    trainer |= {"logger": False, "enable_progress_bar": False}
    clock = {"class_path": "benchmarks.encode.Clock", "init_args": {"file": str(folder / "clock.json")}}
    recipe = {
        "seed_everything": 0,
        "save": "none",
        "model": {"branches": {"image": {"encoder": encoder, "mapper": mapper}}, "decoder": decoder},
        "data": {"class_path": "mmprefix.data.PairData", "init_args": rows},
        "trainer": {**trainer, "callbacks": [clock]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def run_command(folder: Path, verb: str, *arguments: str) -> None:
    """Run ``mmprefix verb`` on the recipe; end the program if it fails."""
    if mmprefix([verb, "--config", str(folder / "recipe.yaml"), *arguments]):
        raise SystemExit(f"mmprefix {verb} failed")


def time_command(folder: Path, verb: str, *arguments: str) -> tuple[float, float]:
    """CPU and wall seconds of ``mmprefix verb`` on the recipe."""
    cpu, wall = time.process_time(), time.perf_counter()
    run_command(folder, verb, *arguments)
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times of filling the store, of doing so again (start-up alone), and of second epochs with and without it."""
    make_data(folder, options)
    write_recipe(folder, options.captions[0], options)
    run_command(folder, "fit", "--dry_run=true")  # imports are not part of any time
    cache = ("--cache", str(folder / "cache"))
    filling: list[dict[str, Any]] = []
    for dtype in ("float16", "float32"):
        (cpu, wall), again = (time_command(folder, "encode", *cache, "--cache_dtype", dtype) for _ in range(2))
        size = sum(file.stat().st_size for file in (folder / "cache").rglob("*.safetensors"))
        seconds = {"cpu_s": cpu, "wall_s": wall, "again_cpu_s": again[0], "again_wall_s": again[1]}
        filling.append({"dtype": dtype, **seconds, "bytes_so_far": size})
    epochs: list[dict[str, Any]] = []
    for captions in options.captions:
        write_recipe(folder, captions, options)
        times: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
        for _ in range(options.repeat):
            for name, arguments in (("with", cache), ("without", ())):
                run_command(folder, "fit", *arguments)
                times[name].append(json.loads((folder / "clock.json").read_text(encoding="utf-8"))[1])
        epochs.append({"captions": captions, **times})
    return {"options": options_of(options), "versions": versions(), "epochs": epochs, "filling": filling}


def report(results: dict[str, Any]) -> str:
    """The tables."""
    count = results["options"]["pictures"]
    rows = []
    for epoch in results["epochs"]:
        cpu = {name: median(cpu_s for cpu_s, _ in epoch[name]) / count for name in ("with", "without")}
        wall = {name: median(wall_s for _, wall_s in epoch[name]) / count for name in ("with", "without")}
        cells = [f"{1000 * side[name]:.3g}" for side in (cpu, wall) for name in ("without", "with")]
        main = cpu if results["options"].get("accelerator", "cpu") == "cpu" else wall
        rows.append([str(epoch["captions"]), cells[0], cells[1], *cells[2:], f"{main['without'] / main['with']:.2f}"])
    head = ["captions a picture", "without, CPU ms a picture", "with the store", "without, wall ms", "with", "x"]
    text, before = markdown_table(head, rows), 0
    for filling in results["filling"]:
        size, before = filling["bytes_so_far"] - before, filling["bytes_so_far"]
        cpu_ms = 1000 * filling["cpu_s"] / count
        text += f"\n\nFilling as {filling['dtype']}: {cpu_ms:.0f} CPU ms a picture with start-up, "
        text += f"{size / count:.0f} bytes a picture on disk."
        if "again_cpu_s" in filling:
            cpu, wall = (filling[f"{kind}_s"] - filling[f"again_{kind}_s"] for kind in ("cpu", "wall"))
            text += (
                f" Without start-up {1000 * cpu / count:.0f} CPU ms a picture, {count / wall:.3g} pictures a second."
            )
    return text


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, write the JSON file."""
    parser = benchmark_parser(__doc__)
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
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
