"""Forms in which a trained model is adapted to the rows of a domain or a user: manifests, recipes, trainings."""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.studies.ablation_esc10 import mapper_recipe
from benchmarks.studies.understanding import RECIPES

Row = dict[str, Any]
Content = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """A way to adapt: what is added to the base, and what of it all is trained.

    Args:
        rate: learning rate.
        only: names of the trained parts (``model.train_only``); None: all that the base trained, and the decoder if
            that is not frozen.
        mapper: of a branch ``user``, in which the domain or user has a row.
        decoder: options of the decoder.
        text: a text of the own captions is the start of the mapper.
    """

    rate: float
    only: tuple[str, ...] | None = None
    mapper: Content | None = None
    decoder: Content = field(default_factory=dict)
    text: bool = False


def row_of(name: str, **options: Any) -> Content:
    """Mapper with one row, for the domain or user, in which nobody else is trained."""
    return mapper_recipe(name, length=10, capacity=1, nobody=0.0, **options)


MOST = 50  # earlier texts of a row
ROWS, LORA = ("user.rows",), {"lora_rank": 8, "lora_alpha": 16.0}
FORMS: dict[str, Form] = {
    "prompt tuning": Form(1e-2, ROWS, row_of("user_prefix.UserPrefix", std=0.1)),
    "ULPT, rank 16": Form(1e-2, ("user",), row_of("ulpt.UserULPT", rank=16)),
    "deep prefix": Form(1e-2, ROWS, row_of("user_prefix.DeepUserPrefix")),
    "deep prefix, start: text": Form(1e-2, ROWS, row_of("user_prefix.DeepUserPrefix"), text=True),
    "control prefix": Form(1e-2, (*ROWS, "prefix"), row_of("user_prefix.DeepUserPrefix")),
    "LoRA, rank 8": Form(1e-3, ("decoder",), decoder=LORA),
    "DoRA, rank 8": Form(1e-3, ("decoder",), decoder={**LORA, "use_dora": True}),
    "full mapper": Form(3e-4),
    "full fine-tuning": Form(5e-5, decoder={"frozen": False}),
}


@dataclass(frozen=True)
class Task:
    """Own and outside rows in manifests of one folder, for one domain or user."""

    name: str
    folder: Path

    def manifest(self, place: str, split: str) -> Path:
        """Manifest of a ``place`` (own, outside) and a split."""
        return self.folder / f"{place}-{split}.jsonl"

    def rows(self, place: str, split: str) -> list[Row]:
        """Rows of a manifest."""
        return [json.loads(line) for line in self.manifest(place, split).read_text(encoding="utf-8").splitlines()]

    def write(self, place: str, rows: Mapping[str, Sequence[Row]]) -> None:
        """Write the rows of a place by split, all of them with this task's name as user."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for split, own in rows.items():
            lines = [json.dumps({**row, "user": self.name}) + "\n" for row in own]
            self.manifest(place, split).write_text("".join(lines), encoding="utf-8")


def read_splits(folder: Path) -> dict[str, list[Row]]:
    """Rows of a prepared folder by split; names of files become absolute."""
    splits: dict[str, list[Row]] = {}
    for split in ("train", "val", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        kept = ("id", "image", "audio", "captions", "context", "user")
        splits[split] = [{name: row[name] for name in kept if name in row} for row in rows]
        for row in splits[split]:
            row |= {name: str((folder / row[name]).resolve()) for name in ("image", "audio") if name in row}
    return splits


def with_texts(splits: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """Rows with the texts of train that their user (or the domain) wrote, without their own captions."""
    texts: dict[str | None, list[str]] = {}
    for row in splits["train"]:
        texts.setdefault(row.get("user"), []).append(row["captions"][0])
    return {
        split: [
            {**row, "history": [text for text in texts.get(row.get("user"), ()) if text not in row["captions"]][-MOST:]}
            for row in rows
        ]
        for split, rows in splits.items()
    }


def make_tasks(options: argparse.Namespace, *, histories: bool = False) -> list[Task]:
    """Manifests of the domain, or of each user; ``--rows`` limits the outside test, evenly spread.

    With ``histories`` outside rows have their users' earlier texts; own ones have not, for forms stand in their place.
    """
    own = read_splits(options.own)
    outside = read_splits(options.outside) if options.outside else own
    tasks: list[Task] = []
    for name in options.users or ["own"]:
        task = Task(name, options.out / name)
        mine, other = own, outside
        if options.users:
            mine = {split: [row for row in rows if row["user"] == name] for split, rows in own.items()}
            other = {split: [row for row in rows if row["user"] not in options.users] for split, rows in own.items()}
        other = {**other, "test": other["test"][:: max(1, len(other["test"]) // options.rows)]}
        task.write("own", mine)
        task.write("outside", with_texts(other) if histories else other)
        tasks.append(task)
    return tasks


# ---------------------------------- training


def plain_recipe(options: argparse.Namespace) -> Content:
    """The recipe without what the study sets itself, and without a branch of users."""
    file = Path(options.recipe) if options.recipe.endswith(".yaml") else RECIPES / f"{options.recipe}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["model"]["branches"].pop("user", None)
    content["model"].setdefault("rates", {}).pop("user", None)
    content["model"].setdefault("generate", {})["num_beams"] = 1
    for name in ("root", "histories"):  # rows of the study have their texts
        content["data"]["init_args"].pop(name, None)
    content |= {"seed_everything": options.seed, "test_after_fit": False, "cache": str(options.out / "features")}
    content["data"]["init_args"] |= {"seed": options.seed, "max_captions": options.captions}
    content["trainer"] |= {"enable_progress_bar": False, "precision": options.precision}
    return content


def reads_histories(content: Content) -> bool:
    """True for a recipe whose model reads earlier texts of a user: in its prompt, or by a branch."""
    model = content["model"]
    return bool(model.get("wording", {}).get("history")) or "history" in model["branches"]


def adapted_recipe(content: Content, form: Form, task: Task, epochs: int) -> Content:
    """``content``, which starts from a saved model, with what a ``form`` adds and trains."""
    content = copy.deepcopy(content)
    model = content["model"]
    if form.mapper is not None:
        mapper = copy.deepcopy(form.mapper)
        if form.text:
            mapper["init_args"]["start"] = "\n".join(row["captions"][0] for row in task.rows("own", "train"))
        encoder = {"class_path": "mmprefix.encoders.user_id.UserId"}
        model["branches"]["user"] = {"encoder": encoder, "mapper": mapper}
        optimizer: Content = {"class_path": "mmprefix.training.RowAdam", "init_args": {"lr": form.rate}}
    else:
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": form.rate, "weight_decay": 0.01}}
    model["decoder"]["init_args"] |= form.decoder
    model["rates"] = model["rates"] if form.only is None else {}
    model |= {"optimizer": optimizer, "warmup": 4}
    model |= {} if form.only is None else {"train_only": list(form.only)}
    content["trainer"]["max_epochs"] = epochs
    return content


def start_program(words: Sequence[str], output: Path) -> int:
    """Start ``mmprefix WORDS``, which writes to the file ``output``; the number of its process."""
    with output.open("w", encoding="utf-8") as file:
        return subprocess.Popen([sys.executable, "-m", "mmprefix", *words], stdout=file, stderr=subprocess.STDOUT).pid


def fit(content: Content, task: Task, place: str, folder: Path, *, factor: float = 1.0) -> dict[str, float]:
    """Train in a process of its own: best loss of validation, CPU seconds, peak memory in GB; once for a folder."""
    done = folder / "training.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    content = copy.deepcopy(content)
    optimizer = content["model"].get("optimizer", {"init_args": {}})["init_args"]
    optimizer["lr"] = optimizer.get("lr", 1e-3) * factor
    content["data"]["init_args"] |= {split: str(task.manifest(place, split)) for split in ("train", "val")}
    content["trainer"]["default_root_dir"] = str(folder)
    content |= {"save_to": str(folder / "model"), "overwrite": True}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    started = start_program(["fit", "--config", str(folder / "recipe.yaml")], folder / "output.txt")
    _, code, used = os.wait4(started, 0)
    if code:
        raise SystemExit(f"{folder}: the training failed; see {folder / 'output.txt'}")
    with max(folder.rglob("metrics.csv"), key=lambda file: file.stat().st_mtime_ns).open(encoding="utf-8") as lines:
        loss = min(float(row["val/loss"]) for row in csv.DictReader(lines) if row.get("val/loss"))
    figures = {"loss": loss, "seconds": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss / 2**20}
    done.write_text(json.dumps(figures), encoding="utf-8")
    return figures
