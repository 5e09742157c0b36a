"""Prefix-AAC's ablation on ESC-10: no mapper, temporal mapper, global mapper, both, several seeds each.

    python -m benchmarks.studies.ablation_esc10 --data ../shared/data/esc10 --seeds 0 1 2

The runs are those of recipes/prefix_aac_esc10.yaml, whose frozen parts docs/real_input.md says how to make. Each
variant has its own learning rate, the better of two by the loss on fold 3 after training on folds 1 and 2 with one
seed. Then it is trained on folds 1 to 3 and measured on fold 4. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lib.report import markdown_table
from mmprefix.cli.main import main as mmprefix
from mmprefix.recipes.score.esc10 import score

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "prefix_aac_esc10.yaml"
FIGURES = ("loss", "class named", "cider_d", "cider_d_shuffled", "bleu_4", "rouge_l", "distinct")


def mapper_recipe(name: str, **options: Any) -> dict[str, Any]:
    """Class path and arguments of a mapper, as in a recipe."""
    return {"class_path": f"mmprefix.mappers.{name}", "init_args": options}


TEMPORAL = mapper_recipe("prefix_aac.PrefixAAC", reads="frames", length=15)
GLOBAL = mapper_recipe("prefix_aac.PrefixAAC", reads="summary", length=11)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "no mapper, frames and summary": [
        mapper_recipe("linear.Linear", reads="frames", bias=False),
        mapper_recipe("linear.Linear", reads="summary", length=11, bias=False),
    ],
    "mapper, frames only": [TEMPORAL],
    "mapper, summary only": [GLOBAL],
    "mappers, both": [TEMPORAL, GLOBAL],
}


def write_manifests(data: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Options of the data module for the choice of a learning rate ("chosen") and for the final training ("final").

    Writes manifests of folds 1 and 2, and of fold 3, with absolute paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    files = {"train": folder / "folds12.jsonl", "val": folder / "fold3.jsonl"}
    for split, file in files.items():
        kept = [row for row in rows if row["split"] == "train" and (row["fold"] == 3) == (split == "val")]
        lines = [json.dumps({**row, "audio": str((data / row["audio"]).resolve())}) for row in kept]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {"chosen": {k: str(v) for k, v in files.items()}, "final": {"root": str(data)}}


def train(
    folder: Path, mappers: list[dict[str, Any]], lr: float, *, seed: int, data: dict[str, str]
) -> dict[str, float]:
    """Train and measure one model in ``folder``, or read the figures of a finished run."""
    done = folder / "figures.json"
    if done.is_file():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    mapper = mappers[0] if len(mappers) == 1 else mapper_recipe("parallel.Parallel", mappers=mappers)
    changes = {
        "model": {
            "branches": {"audio": {"encoder": _encoder(), "mapper": mapper}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "weight_decay": 0.01}},
        },
        "data": {"class_path": "mmprefix.data.PairData", "init_args": {**data, "seed": seed}},
        "trainer": {"default_root_dir": str(folder), "enable_progress_bar": False, "enable_checkpointing": False},
        "seed_everything": seed,
        "save": "none",
    }
    (folder / "changes.yaml").write_text(yaml.safe_dump(changes), encoding="utf-8")
    if code := mmprefix(["fit", "--config", str(RECIPE), "--config", str(folder / "changes.yaml")]):
        raise SystemExit(code)
    figures = _read_figures(folder, Path(data["root"]) / "manifest.jsonl" if "root" in data else Path(data["val"]))
    done.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def _encoder() -> dict[str, Any]:
    """The recipe's encoder, which encodes each clip once instead of once an epoch."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    return {**recipe["model"]["branches"]["audio"]["encoder"], "class_path": "benchmarks.lib.cached_encoders.CachedCnn"}


def _read_figures(folder: Path, manifest: Path) -> dict[str, float]:
    """Figures of the last validation, and the share of its captions that name the right class."""
    with max(folder.glob("logs/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime_ns).open() as lines:
        last = [row for row in csv.DictReader(lines) if row.get("val/loss")][-1]
    figures = {name.removeprefix("val/"): float(value) for name, value in last.items() if name.startswith("val/")}
    labels = {row["id"]: row["label"] for row in map(json.loads, manifest.read_text().splitlines())}
    texts = max(folder.glob("logs/version_*/captions/val-step*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    right, _ = score((labels[row["id"]], row["prediction"]) for row in rows)
    return {**figures, "class named": right}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train what is not finished, print the table, write ablation.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ESC-10, with manifest.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="learning rates to choose from")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation_esc10"))
    options = parser.parse_args(argv)
    data = write_manifests(options.data, options.out)
    variants = []
    for name, mappers in VARIANTS.items():
        folder = options.out / name.replace(", ", "-").replace(" ", "_")
        tried = {
            lr: train(folder / f"choice-{lr:g}", mappers, lr, seed=0, data=data["chosen"])["loss"]
            for lr in options.rates
        }
        lr = min(tried, key=lambda rate: tried[rate])
        runs = [
            train(folder / f"seed{seed}-{lr:g}", mappers, lr, seed=seed, data=data["final"]) for seed in options.seeds
        ]
        variants.append({"row": name, "lr": lr, "tried": tried, "seeds": options.seeds, "runs": runs})
    rows = []
    for variant in variants:
        cells = [variant["row"], f"{variant['lr']:g}"]
        for figure in FIGURES:
            values = [run.get(figure, float("nan")) for run in variant["runs"]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        rows.append(cells)
    print(markdown_table(["row", "rate", *FIGURES], rows))
    (options.out / "ablation.json").write_text(json.dumps(variants, indent=1) + "\n", encoding="utf-8")
    return variants


if __name__ == "__main__":
    main()
