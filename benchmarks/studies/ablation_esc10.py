"""Prefix-AAC's ablation on real sound: no mapper, temporal only, global only, both, several seeds each.

    python -m benchmarks.studies.ablation_esc10 --data ../shared/data/esc10 --seeds 0 1 2

The runs are those of recipes/prefix_aac_esc10.yaml, whose frozen parts docs/real_input.md says how to make. Every row
has a learning rate of its own, the better of two: trained on folds 1 and 2, measured on fold 3 by the loss, one seed.
Then it is trained on folds 1 to 3 and measured on fold 4. Finished runs are not done again.
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

from benchmarks.lib.timing import table
from mmprefix.cli.main import main as mmprefix
from mmprefix.recipes.score.esc10 import score

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "prefix_aac_esc10.yaml"
FIGURES = ("loss", "class named", "cider_d", "cider_d_shuffled", "bleu_4", "rouge_l", "distinct")


def part(name: str, **options: Any) -> dict[str, Any]:
    """A mapper as a recipe has it."""
    return {"class_path": f"mmprefix.mappers.{name}", "init_args": options}


TEMPORAL = part("prefix_aac.PrefixAAC", reads="frames", length=15)
GLOBAL = part("prefix_aac.PrefixAAC", reads="summary", length=11)
ROWS: dict[str, list[dict[str, Any]]] = {
    "no mapper, frames and summary": [
        part("linear.Linear", reads="frames", bias=False),
        part("linear.Linear", reads="summary", length=11, bias=False),
    ],
    "mapper, frames only": [TEMPORAL],
    "mapper, summary only": [GLOBAL],
    "mappers, both": [TEMPORAL, GLOBAL],
}


def manifests(data: Path, place: Path) -> dict[str, dict[str, str]]:
    """Manifests of folds 1 to 3 by fold, with absolute paths: what the learning rate is chosen on."""
    place.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    files = {"train": place / "folds12.jsonl", "val": place / "fold3.jsonl"}
    for split, file in files.items():
        kept = [row for row in rows if row["split"] == "train" and (row["fold"] == 3) == (split == "val")]
        lines = [json.dumps({**row, "audio": str((data / row["audio"]).resolve())}) for row in kept]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {"chosen": {k: str(v) for k, v in files.items()}, "final": {"root": str(data)}}


def run(place: Path, mappers: list[dict[str, Any]], lr: float, seed: int, data: dict[str, str]) -> dict[str, float]:
    """Trains and measures one model below ``place``, or reads what was measured before."""
    done = place / "figures.json"
    if done.is_file():
        return json.loads(done.read_text())
    place.mkdir(parents=True, exist_ok=True)
    mapper = mappers[0] if len(mappers) == 1 else part("parallel.Parallel", mappers=mappers)
    changes = {
        "model": {
            "branches": {"audio": {"encoder": _encoder(), "mapper": mapper}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "weight_decay": 0.01}},
        },
        "data": {"class_path": "mmprefix.data.PairData", "init_args": {**data, "seed": seed}},
        "trainer": {"default_root_dir": str(place), "enable_progress_bar": False, "enable_checkpointing": False},
        "seed_everything": seed,
        "save_to": None,
    }
    (place / "changes.yaml").write_text(yaml.safe_dump(changes), encoding="utf-8")
    if code := mmprefix(["fit", "--config", str(RECIPE), "--config", str(place / "changes.yaml")]):
        raise SystemExit(code)
    found = _measured(place, Path(data["root"]) / "manifest.jsonl" if "root" in data else Path(data["val"]))
    done.write_text(json.dumps(found), encoding="utf-8")
    return found


def _encoder() -> dict[str, Any]:
    """The recipe's encoder, which hears each clip once and not in every epoch."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    return {**recipe["model"]["branches"]["audio"]["encoder"], "class_path": "benchmarks.lib.cached_encoders.CachedCnn"}


def _measured(place: Path, manifest: Path) -> dict[str, float]:
    """The last validation's figures, and the share of its captions that name the right class."""
    with max(place.glob("logs/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime_ns).open() as lines:
        last = [row for row in csv.DictReader(lines) if row.get("val/loss")][-1]
    figures = {name.removeprefix("val/"): float(value) for name, value in last.items() if name.startswith("val/")}
    labels = {row["id"]: row["label"] for row in map(json.loads, manifest.read_text().splitlines())}
    texts = max(place.glob("logs/version_*/captions/val-step*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    right, _ = score((labels[row["id"]], row["prediction"]) for row in rows)
    return {**figures, "class named": right}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Trains all that is missing, prints the table, writes ablation.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of ESC-10, with manifest.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="learning rates to choose from")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation_esc10"))
    options = parser.parse_args(argv)
    data = manifests(options.data, options.out)
    found = []
    for name, mappers in ROWS.items():
        place = options.out / name.replace(", ", "-").replace(" ", "_")
        tried = {lr: run(place / f"choice-{lr:g}", mappers, lr, 0, data["chosen"])["loss"] for lr in options.rates}
        lr = min(tried, key=lambda rate: tried[rate])
        runs = [run(place / f"seed{seed}-{lr:g}", mappers, lr, seed, data["final"]) for seed in options.seeds]
        found.append({"row": name, "lr": lr, "tried": tried, "seeds": options.seeds, "runs": runs})
    rows = []
    for row in found:
        cells = [row["row"], f"{row['lr']:g}"]
        for figure in FIGURES:
            values = [one.get(figure, float("nan")) for one in row["runs"]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        rows.append(cells)
    print(table(["row", "rate", *FIGURES], rows))
    (options.out / "ablation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
