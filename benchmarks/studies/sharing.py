"""Study of quality: captions with one shared prefix against a prefix each, and stored float16 features against float32.

    python -m benchmarks.studies.sharing ../shared/data --sets esc10 coco_mini --seeds 0 1 2 --json sharing.json

Each recipe is trained as it is (a manifest row is an input with all its captions, which share one prefix), and with a
row for each caption (a prefix each), at equal captions a step and in total; then with features stored as float16 and
float32. Reported are CIDEr-D and loss on held-out rows, mean and deviation over the seeds. Make the frozen parts first
(docs/real_input.md).
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lib.report import benchmark_parser, markdown_table, publish, versions
from mmprefix.cli.main import main as mmprefix
from mmprefix.data.manifest import INPUTS

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
VARIANTS: dict[str, tuple[bool, str | None]] = {  # → one row a caption?, dtype of the feature store
    "shared prefix, no store": (False, None),
    "shared prefix, float32 store": (False, "float32"),
    "shared prefix, float16 store": (False, "float16"),
    "a prefix for each caption, float32 store": (True, "float32"),
}


def write_manifest(
    source: Path, target: Path, split: str, *, most: int | None = None, row_per_caption: bool = False
) -> float:
    """Write the rows of ``split`` with at most ``most`` captions each, or one row for each of these captions.

    Returns the mean number of captions of a row of ``source``, cut to ``most``.
    """
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("split") == split]
    for row in rows:
        row |= {name: str((source.parent / row[name]).resolve()) for name in INPUTS if row.get(name)}
        row["captions"] = row["captions"][:most]
    mean = sum(len(row["captions"]) for row in rows) / len(rows)
    if row_per_caption:
        rows = [
            {**row, "id": f"{row['id']}-{number}", "captions": [caption]}
            for row in rows
            for number, caption in enumerate(row["captions"])
        ]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return mean


def train(name: str, data: Path, folder: Path, *, seed: int, variant: str) -> dict[str, float]:
    """Train recipe ``name`` in a new ``folder``; CIDEr-D and loss on held-out rows after the last epoch."""
    row_per_caption, dtype = VARIANTS[variant]
    folder.mkdir(parents=True)
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    options = recipe["data"]["init_args"]
    manifest, most = data / options.pop("root") / "manifest.jsonl", options.pop("max_captions", None)
    mean = write_manifest(manifest, folder / "train.jsonl", "train", most=most, row_per_caption=row_per_caption)
    write_manifest(manifest, folder / "held_out.jsonl", "val" if name == "esc10" else "test")
    options |= {"train": str(folder / "train.jsonl"), "val": str(folder / "held_out.jsonl"), "seed": seed}
    if row_per_caption:
        options |= {"batch_size": round(options["batch_size"] * mean), "eval_batch_size": options["batch_size"]}
    recipe |= {"seed_everything": seed, "save": "none", "test_after_fit": False}
    recipe["trainer"] |= {"default_root_dir": str(folder), "enable_progress_bar": False, "enable_checkpointing": False}
    recipe["trainer"] |= {"check_val_every_n_epoch": recipe["trainer"]["max_epochs"], "num_sanity_val_steps": 0}
    recipe["trainer"] |= {"enable_model_summary": False}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    cache = [] if dtype is None else ["--cache", str(folder.parent / "cache"), "--cache_dtype", dtype]
    if mmprefix(["fit", "--config", str(folder / "recipe.yaml"), *cache]):
        raise SystemExit(f"{name}: the training failed")
    file = max(folder.glob("logs/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime_ns)
    with file.open(encoding="utf-8") as lines:
        last = [row for row in csv.DictReader(lines) if row.get("val/loss")][-1]
    return {key: float(last[f"val/{key}"]) for key in ("cider_d", "cider_d_shuffled", "loss")}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of each data set and variant, a list over the seeds."""
    sets: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in options.sets:
        sets[name] = {variant: [] for variant in VARIANTS}
        for seed in options.seeds:
            for number, variant in enumerate(VARIANTS):
                figures = train(name, options.data, folder / name / f"{number}-{seed}", seed=seed, variant=variant)
                sets[name][variant].append(figures)
                print(name, variant, seed, figures, flush=True)
    return {"seeds": options.seeds, "versions": versions(), "sets": sets}


def report(results: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for name, variants in results["sets"].items():
        for variant, runs in variants.items():
            cells = []
            for key in ("cider_d", "cider_d_shuffled", "loss"):
                values = [run[key] for run in runs]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
            rows.append([f"{name}: {variant}", *cells])
    return markdown_table(["trained with", "CIDEr-D", "with other inputs", "loss"], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with esc10 and coco_mini")
    parser.add_argument("--sets", nargs="+", default=["esc10", "coco_mini"], help="recipes, named like their data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
