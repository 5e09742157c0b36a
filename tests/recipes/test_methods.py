"""Every recipe of ``recipes/methods`` trains on the common base, is saved, and writes the same when it is loaded."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

import mmprefix
from mmprefix.cli.main import main
from mmprefix.decoders import CausalDecoder

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "methods"
METHODS = sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem != "base")
REAL = re.compile(r"\bmodels:([\w.-]+)")


def fit(name: str, folder: Path, *more: str) -> Path:
    """Two steps of a method on sixteen rows → the saved model."""
    data = ["--data.directory", str(folder / "data"), "--data.scenes", "16", "--data.batch_size", "8"]
    data += ["--data.val_scenes", "4", "--data.test_scenes", "2", "--data.eval_batch_size", "4"]
    run = ["--trainer.default_root_dir", str(folder / "run"), "--trainer.max_epochs", "1"]
    run += ["--trainer.check_val_every_n_epoch", "1", "--test_after_fit", "false", "--trainer.accelerator", "cpu"]
    saved = folder / "model"
    configs = [word for file in ("base", name) for word in ("--config", str(FOLDER / f"{file}.yaml"))]
    assert main(["fit", *configs, *data, *run, "--save_to", str(saved), *more]) == 0
    return saved


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_is_saved(name: str, tmp_path: Path, real_model: object) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    for part in REAL.findall(text):
        real_model(part)  # type: ignore[operator]
    more: list[str] = []
    if "start_from: " in text.split("\nmodel:")[1]:  # a prefix of the same kind, trained before
        source = str(fit("p_tuning_v2", tmp_path / "source", "--model.prefix.init_args.length", "20"))
        more = ["--model.start_from", source, "--model.objective.init_args.teacher", source]
    model = mmprefix.load(fit(name, tmp_path, *more))
    rows = [json.loads(line) for line in (tmp_path / "data" / "val.jsonl").read_text().splitlines()]
    inputs = [{kind: row[kind] for kind in model.kinds} for row in rows]
    texts = [row["captions"][0] for row in rows]
    decoder = model.model.decoder
    assert isinstance(decoder, CausalDecoder)
    tokens = [len(decoder.codec.target_ids("\n", text)) for text in texts]
    scores = model.score(inputs, texts, context=[row["context"] for row in rows])
    (metrics,) = (tmp_path / "run").rglob("metrics.csv")
    with metrics.open() as lines:
        (logged,) = [float(row["val/loss"]) for row in csv.DictReader(lines) if row["val/loss"]]
    assert -sum(scores) / sum(tokens) == pytest.approx(logged, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_says_what_is_known(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    head = text.split("\nmodel:")[0]
    assert re.match(r"# .{10,}\.\n#\n# Paper: ", head)
    assert "https://arxiv.org/abs/" in head
    assert "# Chosen: " in head
