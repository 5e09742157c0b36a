"""Whether what makes training cheap changes what is learned: sharing a prefix among captions, and float16 features.

    python -m benchmarks.studies.sharing ../shared/data --sets esc10 coco_mini --seeds 0 1 2 --json sharing.json

Each recipe is trained as it is (a row is an input with all its captions, whose prefix is read once), and with a row for
each caption (each reads a prefix of its own), at equal captions a step and in all; then with features kept as float16
and float32. Held-out CIDEr-D and loss, means and deviations over the seeds. The frozen parts must be there
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

from benchmarks.lib.timing import table, versions
from mmprefix.cli.main import main as shell
from mmprefix.data.manifest import INPUTS

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
VARIANTS = {
    "shared prefix, no store": ("shared", None),
    "shared prefix, float32 store": ("shared", "float32"),
    "shared prefix, float16 store": ("shared", "float16"),
    "a prefix for each caption, float32 store": ("apart", "float32"),
}


def write(manifest: Path, out: Path, split: str, most: int | None = None, apart: bool = False) -> float:
    """Writes the rows of a split with at most ``most`` captions, or a row for each of those; captions a row before."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("split") == split]
    for row in rows:
        row |= {name: str((manifest.parent / row[name]).resolve()) for name in INPUTS if row.get(name)}
        row["captions"] = row["captions"][:most]
    mean = sum(len(row["captions"]) for row in rows) / len(rows)
    if apart:
        rows = [
            {**row, "id": f"{row['id']}-{number}", "captions": [caption]}
            for row in rows
            for number, caption in enumerate(row["captions"])
        ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return mean


def train(name: str, data: Path, place: Path, seed: int, form: str, dtype: str | None, split: str) -> dict[str, float]:
    """The last figures on the held-out rows."""
    place.mkdir(parents=True)
    made = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    options = made["data"]["init_args"]
    manifest, most = data / options.pop("root") / "manifest.jsonl", options.pop("max_captions", None)
    mean = write(manifest, place / "train.jsonl", "train", most, apart=form == "apart")
    write(manifest, place / "held_out.jsonl", split)
    options |= {"train": str(place / "train.jsonl"), "val": str(place / "held_out.jsonl"), "seed": seed}
    if form == "apart":
        options |= {"batch_size": round(options["batch_size"] * mean), "eval_batch_size": options["batch_size"]}
    made |= {"seed_everything": seed, "save_to": None, "test_after_fit": False}
    made["trainer"] |= {"default_root_dir": str(place), "enable_progress_bar": False, "enable_checkpointing": False}
    made["trainer"] |= {"check_val_every_n_epoch": made["trainer"]["max_epochs"], "num_sanity_val_steps": 0}
    made["trainer"] |= {"enable_model_summary": False}
    (place / "recipe.yaml").write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    cache = [] if dtype is None else ["--cache", str(place.parent / "cache"), "--cache_dtype", dtype]
    if shell(["fit", "--config", str(place / "recipe.yaml"), *cache]):
        raise SystemExit(f"{name}: the training failed")
    file = max(place.glob("logs/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime_ns)
    with file.open(encoding="utf-8") as lines:
        last = [row for row in csv.DictReader(lines) if row.get("val/loss")][-1]
    return {key: float(last[f"val/{key}"]) for key in ("cider_d", "cider_d_shuffled", "loss")}


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures by set and variant, a list over the seeds."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in options.sets:
        split = "val" if name == "esc10" else "test"
        found[name] = {variant: [] for variant in VARIANTS}
        for seed in options.seeds:
            for variant, (form, dtype) in VARIANTS.items():
                place = folder / name / f"{form}-{dtype}-{seed}"
                found[name][variant].append(train(name, options.data, place, seed, form, dtype, split))
                print(name, variant, seed, found[name][variant][-1], flush=True)
    return {"seeds": options.seeds, "versions": versions(), "sets": found}


def report(found: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for name, variants in found["sets"].items():
        for variant, runs in variants.items():
            cells = []
            for key in ("cider_d", "cider_d_shuffled", "loss"):
                values = [run[key] for run in runs]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
            rows.append([f"{name}: {variant}", *cells])
    return table(["trained with", "CIDEr-D", "with other inputs", "loss"], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Trains, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds esc10 and coco_mini")
    parser.add_argument("--sets", nargs="+", default=["esc10", "coco_mini"], help="recipes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    print(report(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
