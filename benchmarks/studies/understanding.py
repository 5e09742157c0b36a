"""Quality of the recipes of spoken language understanding on real data: three seeds each, beside a majority baseline.

    python -m benchmarks.studies.understanding ../shared/data --sets slu_fsdd slu_barista --out understanding.json

Make the frozen parts first (docs/slu.md). Each clip is encoded once a process, so that further seeds cost little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import mmprefix
from mmprefix.cli.main import main as run_mmprefix
from mmprefix.metrics import slurp_records
from mmprefix.metrics.slu import score
from mmprefix.slu.annotation import read_annotation
from mmprefix.slu.schema import Schema, read_schema

RECIPES = Path(__file__).parents[2] / "recipes"
CACHED_ENCODERS = {"mmprefix.encoders.whisper.Whisper": "benchmarks.lib.cached_encoders.CachedWhisper"}
Row = Mapping[str, Any]


def read_rows(manifest: Path, split: str) -> list[Row]:
    """The manifest rows of one split."""
    with manifest.open(encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row["split"] == split]


def train(name: str, data: Path, folder: Path, *, seed: int, changes: Sequence[str]) -> tuple[Path, float]:
    """Train recipe ``name`` with ``changes`` (option=value): folder of the saved model, and minutes of training."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    for branch in recipe["model"]["branches"].values():
        path = branch["encoder"]["class_path"]
        branch["encoder"]["class_path"] = CACHED_ENCODERS.get(path, path)
    arguments = recipe["data"]["init_args"]
    arguments |= {"root": str(data / arguments["root"]), "seed": seed}
    recipe |= {"seed_everything": seed, "save_to": str(folder / "model"), "overwrite": True}
    recipe["trainer"] |= {"default_root_dir": str(folder), "check_val_every_n_epoch": 1000, "num_sanity_val_steps": 0,
                          "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
                          "enable_checkpointing": False}  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    began = time.monotonic()
    if run_mmprefix(["fit", "--config", str(file), *(f"--{change}" for change in changes)]):
        raise SystemExit(f"{name}: the training failed")
    return folder / "model", (time.monotonic() - began) / 60


def first_text(value: Any) -> str:
    """The first of several texts, or the only one."""
    return value[0] if isinstance(value, list) else value


@dataclass(frozen=True)
class TestSet:
    """Test rows of a data set, with the schema whose answers are offered and the field that holds intents.

    ``contexts`` are the row fields that a model without audio reads one after the other; None stands for the audio.
    """

    root: Path
    rows: list[Row]
    schema: Schema
    intent_field: str
    contexts: list[str | None]

    def predict(self, model: Any, context: str | None) -> dict[str, Any]:
        """Predict intent and slots of all rows from one input field, and return the figures."""
        if context is None:
            files = [str(self.root / row["audio"]) for row in self.rows]
            return self.score(model.understand(files, batch_size=32, schema=self.schema), self.rows)
        rows = [row for row in self.rows if row[context]]
        texts = [first_text(row[context]) for row in rows]
        return self.score(model.understand(context=texts, batch_size=64, schema=self.schema), rows)

    def score(self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """Accuracies and F-scores of ``predictions`` for ``rows``."""
        predicted, gold = [], []
        for prediction, row in zip(predictions, rows, strict=True):
            annotation = read_annotation(row, self.intent_field)
            frame = {"id": row["id"], "intent": annotation.intent, "slots": annotation.slots}
            gold.append(slurp_records.read_frame(frame, row["id"]))
            predicted.append(slurp_records.read_frame({"id": row["id"], **prediction}, row["id"]))
        scores = score(predicted, gold)
        names = ("intent_accuracy", "slot_accuracy", "frame_accuracy", "span_f1", "slu_f1")
        figures = {name: scores[name] for name in names if scores.get(name) is not None}
        return figures | {"per_slot_accuracy": scores.get("per_slot_accuracy") or {}}

    def majority(self, train_rows: Sequence[Row]) -> dict[str, Any]:
        """Figures of a baseline that always predicts the commonest intent and each slot's commonest value, or none."""
        intents: Counter[str | None] = Counter()
        values: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
        for row in train_rows:
            gold = read_annotation(row, self.intent_field)
            intents[gold.intent] += 1
            for slot in self.schema.slots:
                values[slot][gold.slots.get(slot, ())] += 1
        commonest = {slot: list(counts.most_common(1)[0][0]) for slot, counts in values.items()}
        slots = {slot: value for slot, value in commonest.items() if value}
        prediction = {"intent": intents.most_common(1)[0][0], "slots": slots}
        return self.score([prediction] * len(self.rows), self.rows)


def read_test_set(recipe: dict[str, Any], options: argparse.Namespace) -> TestSet:
    """The test set of a recipe, cut to the intents of ``--only``."""
    arguments = recipe["data"]["init_args"]
    root, field = options.data / arguments["root"], arguments.get("intent_field", "intent")
    schema = read_schema(arguments["schema"])
    schema = schema if arguments.get("slots", True) else schema.only(slots=[])
    rows = read_rows(root / "manifest.jsonl", options.split)
    if options.only:
        only = schema.only(intents=options.only.split(","))
        rows = [row for row in rows if read_annotation(row, field).intent in only.intents]
        schema = schema if options.among_all else only
    has_audio = recipe["model"]["branches"] or recipe["model"].get("transcriber")
    return TestSet(root, rows, schema, field, options.context or [None if has_audio else "transcript"])


def train_and_test(name: str, test: TestSet, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one training with ``seed``, by "CONTEXT: FIGURE" if there are several contexts."""
    with tempfile.TemporaryDirectory() as folder:
        saved, minutes = train(name, options.data, Path(folder), seed=seed, changes=options.set)
        model = mmprefix.load(saved)
        run: dict[str, Any] = {"minutes": minutes}
        for context in test.contexts:
            before = f"{context}: " if len(test.contexts) > 1 else ""
            run |= {f"{before}{figure}": value for figure, value in test.predict(model, context).items()}
    return run


def rounded(figures: Mapping[str, Any], digits: int) -> dict[str, float]:
    """The numbers of ``figures``, rounded."""
    return {name: round(value, digits) for name, value in figures.items() if isinstance(value, float)}


def spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Mean and deviation of each figure over the runs."""
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    return {
        name: f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"
        for name in names
        if (values := [run[name] for run in runs])
    }


def report(name: str, results: Mapping[str, Any]) -> str:
    """Lines about one data set: all figures, and the accuracy of each slot in each run."""
    runs, majority = results["runs"], results["majority"]
    lines = [f"{name} {results['rows']} rows {spread(runs)} majority {rounded(majority, 3)}"]
    if runs[0].get("per_slot_accuracy"):
        for slot, baseline in majority["per_slot_accuracy"].items():
            figures = " ".join(f"{run['per_slot_accuracy'].get(slot, float('nan')):.3f}" for run in runs)
            lines.append(f"  {slot:20} {figures} majority {baseline:.3f}")
    return "\n".join(lines)


def main() -> None:
    """Train, test, print the figures, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with fsdd, barista ...")
    parser.add_argument("--sets", nargs="+", required=True, help="recipes, such as slu_fsdd")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--context", nargs="+", help="manifest fields that a text model reads, tested one by one")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="changes to the recipe")
    parser.add_argument("--only", help="test with these intents only, separated by commas (those held out, say)")
    parser.add_argument("--among-all", action="store_true", help="with --only: still offer all intents as answers")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in options.sets:
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        test = read_test_set(recipe, options)
        runs = []
        for seed in options.seeds:
            runs.append(train_and_test(name, test, seed, options))
            print(name, seed, rounded(runs[-1], 4), flush=True)
        majority = test.majority(read_rows(test.root / "manifest.jsonl", "train"))
        sizes = {"rows": len(test.rows), "intents": len(test.schema.intents)}
        results[name] = {**sizes, "runs": runs, "majority": majority}
        print(report(name, results[name]))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
