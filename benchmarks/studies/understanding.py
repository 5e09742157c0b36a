"""What the recipes of spoken language understanding reach on real data: three seeds each, beside trivial baselines.

    python -m benchmarks.studies.understanding ../shared/data --sets slu_fsdd slu_barista --out understanding.json

The frozen parts must be there (docs/slu.md). Each clip is heard once a process, so that the seeds cost little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

import mmprefix
from mmprefix.cli.main import main as shell
from mmprefix.metrics import slurp_records
from mmprefix.metrics.slu import score
from mmprefix.slu.annotation import read_annotation
from mmprefix.slu.schema import read_schema

RECIPES = Path(__file__).parents[2] / "recipes"
_REMEMBERED = {"mmprefix.encoders.whisper.Whisper": "benchmarks.lib.cached_encoders.CachedWhisper"}
Row = Mapping[str, Any]


def read(manifest: Path, split: str) -> list[Row]:
    """The rows of one split."""
    with manifest.open(encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row["split"] == split]


def train(name: str, data: Path, folder: Path, seed: int, changes: Sequence[str]) -> tuple[Path, float]:
    """The saved model of a recipe with ``changes`` (option=value), and the minutes that its training took."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    for branch in recipe["model"]["branches"].values():
        branch["encoder"]["class_path"] = _REMEMBERED.get(
            branch["encoder"]["class_path"], branch["encoder"]["class_path"]
        )
    arguments = recipe["data"]["init_args"]
    arguments |= {"root": str(data / arguments["root"]), "seed": seed}
    recipe |= {"seed_everything": seed, "save_to": str(folder / "model")}
    recipe["trainer"] |= {"default_root_dir": str(folder), "check_val_every_n_epoch": 1000, "num_sanity_val_steps": 0,
                          "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
                          "enable_checkpointing": False}  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    began = time.monotonic()
    if shell(["fit", "--config", str(file), *(f"--{change}" for change in changes)]):
        raise SystemExit(f"{name}: the training failed")
    return folder / "model", (time.monotonic() - began) / 60


def understand(model: Any, rows: Sequence[Row], root: Path, context: str | None, **how: Any) -> list[dict[str, Any]]:
    """What the model understands of ``rows``, in their order."""
    if context is not None:
        return model.understand(context=[row[context] for row in rows], batch_size=64, **how)
    return model.understand([str(root / row["audio"]) for row in rows], batch_size=32, **how)


def figures(found: Sequence[dict[str, Any]], rows: Sequence[Row], field: str) -> dict[str, Any]:
    """Accuracies and F-scores of what was understood."""
    said = [slurp_records.read_frame({"id": row["id"], **one}, row["id"]) for row, one in zip(rows, found, strict=True)]
    gold = []
    for row in rows:
        meant = read_annotation(row, field)
        gold.append(
            slurp_records.read_frame({"id": row["id"], "intent": meant.intent, "slots": meant.slots}, row["id"])
        )
    scores = score(said, gold)
    names = ("intent_accuracy", "slot_accuracy", "frame_accuracy", "span_f1", "slu_f1")
    kept = {name: scores[name] for name in names if scores.get(name) is not None}
    return kept | {"per_slot_accuracy": scores.get("per_slot_accuracy") or {}}


def majority(train_rows: Sequence[Row], rows: Sequence[Row], field: str, slots: Sequence[str]) -> dict[str, Any]:
    """The same for one that always says the commonest intent, and the commonest value (or absence) of each slot."""
    intents: Counter[str | None] = Counter()
    values: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for row in train_rows:
        gold = read_annotation(row, field)
        intents[gold.intent] += 1
        for slot in slots:
            values[slot][gold.slots.get(slot, ())] += 1
    usual = {slot: list(counts.most_common(1)[0][0]) for slot, counts in values.items()}
    one = {"intent": intents.most_common(1)[0][0], "slots": {k: v for k, v in usual.items() if v}}
    return figures([one for _ in rows], rows, field)


def spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Mean and deviation of each figure over the runs."""
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    return {
        name: f"{statistics.mean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}"
        for name in names
        if (v := [run[name] for run in runs])
    }


def main() -> None:
    """Trains, asks, and prints a table and a JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that holds fsdd, barista ...")
    parser.add_argument("--sets", nargs="+", required=True, help="recipes, such as slu_fsdd")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--context", nargs="+", help="the fields that a reader of text reads in turn")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="changes to the recipe")
    parser.add_argument("--only", help="test with these intents only, with commas between (those held out, say)")
    parser.add_argument("--among-all", action="store_true", help="but offer all intents as answers")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for name in args.sets:
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        options = recipe["data"]["init_args"]
        root, field = args.data / options["root"], options.get("intent_field", "intent")
        schema = read_schema(options["schema"])
        kept = schema.only(intents=args.only.split(",")) if args.only else schema
        rows = read(root / "manifest.jsonl", args.split)
        rows = [row for row in rows if not args.only or read_annotation(row, field).intent in kept.intents]
        schema = schema if args.among_all else kept
        known = read(root / "manifest.jsonl", "train")
        runs = []
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as place:
                folder, minutes = train(name, args.data, Path(place), seed, args.set)
                model = mmprefix.load(folder)
                heard = recipe["model"]["branches"] or recipe["model"].get("transcriber")
                contexts = args.context or [None if heard else "transcript"]
                runs.append({"minutes": minutes})
                for context in contexts:
                    these = [{**row, context: text(row[context])} for row in rows if row[context]] if context else rows
                    found = figures(understand(model, these, root, context, schema=schema), these, field)
                    before = f"{context}: " if len(contexts) > 1 else ""
                    runs[-1] |= {f"{before}{name}": value for name, value in found.items()}
                print(name, seed, {k: round(v, 4) for k, v in runs[-1].items() if isinstance(v, float)}, flush=True)
        trivial = majority(known, rows, field, list(schema.slots))
        report[name] = {"rows": len(rows), "intents": len(schema.intents), "runs": runs, "majority": trivial}
        print(
            name,
            len(rows),
            "rows",
            spread(runs),
            "majority",
            {k: round(v, 3) for k, v in trivial.items() if isinstance(v, float)},
        )
        if schema.slots and runs[0].get("per_slot_accuracy"):
            for slot, usual in trivial["per_slot_accuracy"].items():
                print(
                    f"  {slot:20}",
                    *(f"{run['per_slot_accuracy'].get(slot, float('nan')):.3f}" for run in runs),
                    f"majority {usual:.3f}",
                )
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def text(value: Any) -> str:
    """The first of several texts."""
    return value[0] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
