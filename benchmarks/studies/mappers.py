"""Every mapper in one table: a recipe's branch trained with each in turn, everything else as the recipe says.

    python -m benchmarks.studies.mappers flickr8k_mini --root data/flickr8k_mini
    python -m benchmarks.studies.mappers flickr8k_mini --root data/flickr8k_mini --fit --trainer.max_epochs 1

Options behind ``--fit`` are passed to ``mmprefix fit``. Finished runs are not repeated. Figures are those of the last
validation: loss a token, CIDEr-D, that of another input's captions, the share of different captions.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lib.report import markdown_table
from benchmarks.studies.ablation_esc10 import mapper_recipe
from benchmarks.studies.understanding import RECIPES
from mmprefix.cli.main import main as mmprefix

LENGTH = 10
SOFT: dict[str, dict[str, Any]] = {
    "MLP": mapper_recipe("mlp.MLP", length=LENGTH, hidden=512),
    "Linear": mapper_recipe("linear.Linear", reads="summary", length=LENGTH),
    "Transformer, 2 layers": mapper_recipe("transformer.Transformer", length=LENGTH, clip_length=LENGTH, layers=2),
    "Resampler, 2 layers": mapper_recipe("resampler.Resampler", length=LENGTH, layers=2),
    "QueryGuided, 2 layers": mapper_recipe("query_guided.QueryGuided", length=LENGTH, layers=2),
    "PrefixAAC, 2 layers": mapper_recipe("prefix_aac.PrefixAAC", reads="summary", length=LENGTH, layers=2),
}
FIGURES = ("loss", "cider_d", "cider_d_shuffled", "bleu_4", "distinct")


def variants(dropout: float) -> dict[str, dict[str, Any]]:
    """Mappers by name: each within ``Calibrated``, the first also as it comes and as keys and values of each layer.

    The last reads no input: what captions cost without a picture or a sound.
    """
    calibrated = {
        name: mapper_recipe("calibrated.Calibrated", mapper=mapper, dropout=dropout) for name, mapper in SOFT.items()
    }
    first = next(iter(SOFT))
    return {
        **calibrated,
        f"{first} within Deep": mapper_recipe("prefix_tuning.Deep", mapper=calibrated[first]),
        f"{first} as it comes": SOFT[first],
        "no input": mapper_recipe("learned.Learned", length=LENGTH),
    }


def train(recipe: Path, branch: str, mapper: dict[str, Any], folder: Path, *, words: Sequence[str]) -> dict[str, float]:
    """Train and validate one model in ``folder``, or read the figures of a finished run."""
    done = folder / "figures.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    content["model"]["branches"][branch]["mapper"] = mapper
    content |= {"save": "none", "test_after_fit": False}
    content["trainer"] |= {"default_root_dir": str(folder), "enable_progress_bar": False, "enable_checkpointing": False}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_SELF)
    if code := mmprefix(["fit", "--config", str(folder / "recipe.yaml"), *words]):
        raise SystemExit(code)
    after = resource.getrusage(resource.RUSAGE_SELF)
    with max(folder.rglob("metrics.csv"), key=lambda file: file.stat().st_mtime_ns).open(encoding="utf-8") as lines:
        last = [row for row in csv.DictReader(lines) if row.get("val/loss")][-1]
    figures = {name: float(last.get(f"val/{name}") or "nan") for name in FIGURES}
    figures["seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    done.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Train what is not finished and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe with one branch, such as flickr8k_mini")
    parser.add_argument("--root", type=Path, required=True, help="folder of the data, with its manifests")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="begin of the names of the mappers to train")
    parser.add_argument("--out", type=Path, default=Path("runs/mappers"))
    parser.add_argument("--fit", nargs=argparse.REMAINDER, default=[], help="options for mmprefix fit")
    options = parser.parse_args(argv)
    recipe = RECIPES / f"{options.recipe}.yaml"
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    (branch,) = content["model"]["branches"]
    dropout = content["model"]["branches"][branch]["mapper"]["init_args"].get("dropout", 0.0)
    words = ["--data.root", str(options.root), *options.fit]
    figures: dict[str, dict[str, float]] = {}
    for name, mapper in variants(dropout).items():
        if not options.only or name.startswith(tuple(options.only)):
            folder = options.out / name.replace(", ", "-").replace(" ", "_")
            figures[name] = train(recipe, branch, mapper, folder, words=words)
    head = ["mapper", *FIGURES, "CPU s"]
    rows = [[n, *(f"{f[key]:.3f}" for key in FIGURES), f"{f['seconds']:.0f}"] for n, f in figures.items()]
    print(markdown_table(head, rows))
    return figures


if __name__ == "__main__":
    main()
