"""Trainings of the methods in ``recipes/methods``: one run, the best of a grid of rates, repeats with other seeds."""

from __future__ import annotations

import copy
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

import mmprefix
from mmprefix.cli.main import main as shell

RECIPES = Path(__file__).resolve().parents[3] / "recipes" / "methods"
Content = dict[str, Any]
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


def fit(content: Content, folder: Path, *, seed: int = 0, more: Sequence[str] = ()) -> dict[str, float]:
    """Train ``content`` over the base in ``folder``, once: validation loss, test figures, CPU seconds."""
    done = folder / "figures.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "method.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    words = ["fit", "--config", str(RECIPES / "base.yaml"), "--config", str(folder / "method.yaml")]
    words += ["--data.directory", str(folder.parents[1] / "data"), "--seed_everything", str(seed)]
    words += ["--trainer.default_root_dir", str(folder / "run"), "--trainer.enable_progress_bar", "false"]
    words += ["--save_to", str(folder / "model"), "--overwrite", "true", "--trainer.accelerator", "cpu", *more]
    began = time.process_time()
    if code := shell(words):
        raise SystemExit(f"{folder}: the training ended with {code}; run it by hand: mmprefix {' '.join(words)}")
    figures = {"seconds": time.process_time() - began, **_logged(folder / "run")}
    done.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def _logged(run: Path) -> dict[str, float]:
    """Best loss of validation, and the figures of the test."""
    rows: list[dict[str, str]] = []
    for file in run.rglob("metrics.csv"):
        with file.open(encoding="utf-8") as lines:
            rows += list(csv.DictReader(lines))
    losses = [float(row["val/loss"]) for row in rows if row.get("val/loss")]
    test = [row for row in rows if row.get("test/loss")][-1]
    return {"val": min(losses), **{name: float(test[f"test/{name}"]) for name in FIGURES}}


def best_of(
    content: Content, folder: Path, *, factors: Sequence[float], seeds: Sequence[int], more: Sequence[str] = ()
) -> dict[str, Any]:
    """Best rate by validation loss with the first seed; its figures with every seed."""
    own = rate_of(content)
    grid = {own * f: fit(with_rate(content, own * f), folder / f"rate{f:g}", seed=seeds[0], more=more) for f in factors}
    rate = min(grid, key=lambda value: grid[value]["val"])
    factor = rate / own
    runs = [grid[rate]]
    for seed in seeds[1:]:
        runs.append(fit(with_rate(content, rate), folder / f"rate{factor:g}-seed{seed}", seed=seed, more=more))
    result: dict[str, Any] = {"rate": rate, "grid": {f"{value:g}": figures["val"] for value, figures in grid.items()}}
    result |= {name: [run[name] for run in runs] for name in (*FIGURES, "seconds")}
    return result | _size(folder / f"rate{factor:g}" / "model") | _generation(folder / f"rate{factor:g}" / "model")


def _size(saved: Path) -> dict[str, int]:
    """Numbers of a saved model (what merging leaves of those that were trained), and the bytes of their file."""
    file = saved / "model.safetensors"
    with safe_open(file, "pt") as tensors:
        numbers = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118 (no mapping)
    return {"numbers": numbers, "bytes": file.stat().st_size}


def _generation(saved: Path) -> dict[str, float]:
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
