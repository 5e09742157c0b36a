"""Two processes train, test and predict as one: every row once, equal weights and metrics, one model."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mmprefix.cli.main import main
from mmprefix.inference.loading import load
from tiny.captioning_system import (
    CaptioningSystem,
    checkpoint_tensors,
    metric_values,
    quietly,
    report_rows,
    run,
    same_tensors,
    training_record,
)
from tiny.forked import Forked

pytestmark = [*quietly, pytest.mark.slow]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture(scope="module")
def pair(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a training of both branches by two processes, of the words of a command line.

    The first is forked; Lightning starts the second anew, as it starts ``python -m mmprefix`` again.
    """
    root = tmp_path_factory.mktemp("pair")
    recipe = tiny.recipe(tiny.config(dropout=0.2), root)
    words = ["fit", "--config", str(recipe), "--save_to", str(root / "model"), "--test_after_fit=true", *TWO]

    def first() -> int:
        for name in [name for name in os.environ if name.startswith(("PL_", "COV_", "PYTEST"))]:
            del os.environ[name]
        tests = Path(__file__).resolve().parents[1]
        os.environ["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])
        sys.argv = ["mmprefix", *words]
        sys.modules["__main__"].__spec__ = find_spec("mmprefix.__main__")
        return main(words)

    process = Forked(first, root / "log")
    assert process.wait(400) == 0, process.log.read_text()
    assert "sync_dist" not in process.log.read_text()
    return root


def test_each_row_is_trained_on_once_an_epoch_by_one_of_the_two(pair: Path) -> None:
    first, second = training_record(pair, 0), training_record(pair, 1)
    assert len(first.steps) == len(second.steps) == 4
    for epoch in range(2):
        both = [ids for seen in (first, second) for number, ids in seen.steps if number == epoch]
        assert sorted(name for ids in both for name in ids) == [f"{kind}{n}" for kind in "ps" for n in range(6)]


def test_both_processes_end_with_equal_weights_and_write_one_checkpoint_and_model(pair: Path) -> None:
    first, second = training_record(pair, 0), training_record(pair, 1)
    assert same_tensors(first.after, second.after)
    assert not same_tensors(first.before, first.after)
    kept = checkpoint_tensors(pair / "checkpoints" / "last.ckpt")
    assert same_tensors(kept, {name: first.after[name] for name in kept})
    assert sorted(file.name for file in (pair / "model").iterdir()) == [
        "README.md",
        "mmprefix.yaml",
        "model.safetensors",
    ]
    assert [file.name for file in (pair / "logs").iterdir()] == ["version_0"]
    assert len(torch.load(pair / "checkpoints" / "last.ckpt", weights_only=True)["random_states"]) == 2


def test_metrics_equal_those_of_one_process(tiny: CaptioningSystem, pair: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(tiny.config(dropout=0.2), tmp_path)
    for verb, stage in (("validate", "val"), ("test", "test")):
        assert run(verb, recipe, ckpt_path=pair / "checkpoints" / "last.ckpt") == 0
        alone, paired = report_rows(tmp_path, stage), report_rows(pair, stage)
        assert len(paired) == 7
        assert [(row["id"], row["prediction"], row["references"]) for row in alone] == [
            (row["id"], row["prediction"], row["references"]) for row in paired
        ]
        for kind in ("", "image/", "audio/"):
            for name in ("loss", "cider_d", "bleu_4", "rouge_l", "distinct", "cider_d_shuffled"):
                column = f"{stage}/{kind}{name}"
                assert metric_values(pair, column)[-1] == pytest.approx(
                    metric_values(tmp_path, column)[-1], abs=1e-6
                ), column


@pytest.mark.parametrize("rows", [7, 1])
def test_two_processes_write_one_file_of_predictions(
    rows: int, tiny: CaptioningSystem, pair: Path, tmp_path: Path
) -> None:
    """With one row the second process has none, and must still join the collective calls."""
    lines = (tiny.folder / "test.jsonl").read_text().splitlines()[:rows]
    manifest = tiny.folder / f"first{rows}.jsonl"
    manifest.write_text("".join(line + "\n" for line in lines))
    config = tiny.config(dropout=0.2)
    config["data"]["init_args"] |= {"test": [str(manifest)], "eval_batch_size": 2}
    recipe = tiny.recipe(config, tmp_path)
    last = pair / "checkpoints" / "last.ckpt"
    more = {"trainer__devices": 2, "trainer__strategy": "ddp_fork"}  # forked processes are copies of this one
    assert run("predict", recipe, ckpt_path=last, **more) == 0
    written = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in written] == [json.loads(line)["id"] for line in lines]
    tested = {row["id"]: row["prediction"] for row in report_rows(pair, "test")}
    assert [row["prediction"] for row in written] == [tested[row["id"]] for row in written]
    if rows == 1:
        assert run("test", recipe, ckpt_path=last, **more) == 0
        assert len(report_rows(tmp_path, "test")) == 1


def test_forked_processes_read_a_full_store_and_return_their_weights(tiny: CaptioningSystem, tmp_path: Path) -> None:
    recipe, cache = tiny.recipe(tiny.config(), tmp_path), {"cache": tmp_path / "cache"}
    assert run("encode", recipe, **cache) == 0
    more = {**cache, "trainer__devices": 2, "trainer__strategy": "ddp_fork", "trainer__max_epochs": 1}
    assert run("fit", recipe, save_to=tmp_path / "model", **more) == 0
    after = {
        name: tensor for name, tensor in training_record(tmp_path).after.items() if name.startswith("model.mappers.")
    }
    trained = load(tmp_path / "model", device="cpu").model.trained
    assert same_tensors({f"model.{name}": tensor for name, tensor in trained.items()}, after)
