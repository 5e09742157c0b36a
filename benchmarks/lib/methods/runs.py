"""Trainings of the methods in ``recipes/methods``: one run, the best of a grid of rates, repeats with other seeds."""

from __future__ import annotations

import copy
import csv
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import safe_open

import mmprefix
from mmprefix.cli.main import main as shell

RECIPES = Path(__file__).resolve().parents[3] / "recipes" / "methods"
Content = dict[str, Any]
Figures = dict[str, float]
FIGURES = ("loss", "exact_match", "cider_d")


def method_names() -> list[str]:
    """Names of the recipes, without the base."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml") if file.stem != "base")


def read(name: str) -> Content:
    """Content of a recipe of the folder."""
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def rate_of(content: Content) -> float:
    """Learning rate of a recipe, that of the base where it has none."""
    optimizer = content["model"].get("optimizer") or read("base")["model"]["optimizer"]
    return float(optimizer["init_args"]["lr"])


def with_rate(content: Content, rate: float) -> Content:
    """Copy of a recipe with another learning rate."""
    content = copy.deepcopy(content)
    optimizer = content["model"].setdefault("optimizer", copy.deepcopy(read("base")["model"]["optimizer"]))
    optimizer["init_args"]["lr"] = rate
    return content


def with_seed(content: Content, seed: int) -> Content:
    """Copy of a recipe whose starts that draw words draw those of ``seed``."""

    def seeded(part: Any) -> Any:
        if isinstance(part, list):
            return [seeded(item) for item in cast(list[Any], part)]
        if not isinstance(part, dict):
            return part
        fresh = {name: seeded(value) for name, value in cast(Content, part).items()}
        if fresh.get("class_path") == "mmprefix.mappers.starts.Words":
            fresh["init_args"] = fresh.get("init_args", {}) | {"seed": seed}
        return fresh

    return seeded(content)


def fit(content: Content, folder: Path, *, seed: int = 0, more: Sequence[str] = ()) -> Figures:
    """Train ``content`` over the base in ``folder``, once: validation loss, test figures, costs, size.

    ``seed`` is that of random starts, of the words that a prefix begins as, and of the order of the rows. ``memory``
    is the peak of this process in MB.
    """
    done = folder / "figures.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(with_seed(content, seed), sort_keys=False)
    (folder / "method.yaml").write_text(text, encoding="utf-8")
    words = ["fit", "--config", str(RECIPES / "base.yaml"), "--config", str(folder / "method.yaml")]
    words += ["--data.directory", str(folder.parents[1] / "data"), "--data.seed", str(seed)]
    words += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder / "run")]
    words += ["--save_to", str(folder / "model"), "--overwrite", "true"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", *more]
    began = time.process_time()
    if code := shell(words):
        raise SystemExit(f"{folder}: the training ended with {code}; run it by hand: mmprefix {' '.join(words)}")
    figures: Figures = {"seconds": time.process_time() - began, "memory": peak_memory(), **_logged(folder / "run")}
    figures |= _size(folder / "model") | _generation(folder / "model")
    done.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def peak_memory() -> float:
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _logged(run: Path) -> Figures:
    """Best loss of validation, and the figures of the test."""
    rows: list[dict[str, str]] = []
    for file in run.rglob("metrics.csv"):
        with file.open(encoding="utf-8") as lines:
            rows += list(csv.DictReader(lines))
    losses = [float(row["val/loss"]) for row in rows if row.get("val/loss")]
    test = [row for row in rows if row.get("test/loss")][-1]
    return {"val": min(losses), **{name: float(test[f"test/{name}"]) for name in FIGURES}}


def best_of(run: Callable[[float, int], Figures], rates: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    """Figures of ``run`` (a rate and a seed) with every seed at one rate: the best by validation with the first."""
    grid = {rate: run(rate, seeds[0]) for rate in rates}
    rate = min(grid, key=lambda value: grid[value]["val"])
    runs = [grid[rate], *(run(rate, seed) for seed in seeds[1:])]
    result: dict[str, Any] = {"rate": rate, "grid": {f"{value:g}": figures["val"] for value, figures in grid.items()}}
    result |= {name: [figures[name] for figures in runs] for name in (*FIGURES, "seconds")}
    return result | {name: runs[0][name] for name in ("memory", "numbers", "bytes", "generation")}


def _size(saved: Path) -> Figures:
    """Numbers of a saved model (what merging leaves of those that were trained), and the bytes of their file."""
    file = saved / "model.safetensors"
    with safe_open(file, "pt") as tensors:
        numbers = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118 (no mapping)
    return {"numbers": numbers, "bytes": file.stat().st_size}


def _generation(saved: Path) -> Figures:
    """CPU seconds for fifty greedy captions in batches of ten, the second time."""
    model = mmprefix.load(saved)
    file = saved.parents[2] / "data" / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:50]
    inputs = [{kind: row[kind] for kind in model.kinds} for row in rows]
    contexts = [row["context"] for row in rows]
    elapsed = 0.0
    for _ in range(2):
        began = time.process_time()
        with torch.inference_mode():
            model(inputs, context=contexts, batch_size=10)
        elapsed = time.process_time() - began
    return {"generation": elapsed}
