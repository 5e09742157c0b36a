"""Training by the command line: mappers are trained, frozen weights are not, options of the recipe take effect."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.mappers.learned import Learned
from mmprefix.training.optimization.optimizer import lr_factor
from mmprefix.training.task import PrefixTask
from tiny.batches import make_batch
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

pytestmark = quietly


@pytest.fixture(scope="module")
def fitted(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of one training of both branches, tested and saved at its end."""
    root = tmp_path_factory.mktemp("fit")
    recipe = tiny.recipe(tiny.config(), root)
    assert run("fit", recipe, save_to=root / "model", test_after_fit=True, trainer__max_epochs=6) == 0
    return root


def named(state: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if name.startswith(names)}


def test_mappers_are_trained_and_frozen_weights_are_unchanged(fitted: Path) -> None:
    training = training_record(fitted)
    frozen = "model.encoders.", "model.decoder."
    assert len(named(training.before, *frozen)) > 40
    assert same_tensors(named(training.before, *frozen), named(training.after, *frozen))
    mappers = named(training.before, "model.mappers.")
    assert len(mappers) + len(named(training.before, *frozen)) == len(training.before)
    for name, before in mappers.items():
        assert not torch.equal(before, training.after[name]), name
    assert set(training.gradients) == set(mappers)  # none for a frozen tensor, one for every other


def test_the_loss_falls(fitted: Path) -> None:
    losses, steps = metric_values(fitted, "train/loss"), training_record(fitted).steps
    assert len(losses) == len(steps) == 24
    for kind in "ps":  # pictures and sounds have mappers of their own
        own = [loss for loss, (_, ids) in zip(losses, steps, strict=True) if ids[0].startswith(kind)]
        assert sum(own[-4:]) / 4 < own[0] - 0.1, kind
    assert len(metric_values(fitted, "val/loss")) == 6


def test_batches_are_of_one_kind_and_every_row_comes_once_an_epoch(fitted: Path) -> None:
    steps = training_record(fitted).steps
    for epoch in range(6):
        ids = [ids for number, ids in steps if number == epoch]
        assert sorted(name for batch in ids for name in batch) == sorted(
            f"{kind}{n}" for kind in "ps" for n in range(6)
        )
        assert all(len({name[0] for name in batch}) == 1 for batch in ids)


def test_optimizer_and_schedule_are_those_of_the_recipe(fitted: Path) -> None:
    rates = training_record(fitted).rates
    assert len(rates) == 24
    assert rates[0] == pytest.approx(0.01 / 2)  # a warm-up of 5 % of 24 steps is one step
    assert rates[1] == pytest.approx(0.01)
    assert rates[13] == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi * 12 / 23)))


def test_a_checkpoint_is_used_by_every_verb(tiny: CaptioningSystem, fitted: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(tiny.config(), tmp_path)
    last = fitted / "checkpoints" / "last.ckpt"
    assert run("validate", recipe, ckpt_path=last) == 0
    assert report_rows(tmp_path, "val") == report_rows(fitted, "val")
    assert metric_values(tmp_path, "val/loss")[-1] == pytest.approx(metric_values(fitted, "val/loss")[-1], abs=1e-6)
    assert run("test", recipe, ckpt_path=last) == 0
    assert report_rows(tmp_path, "test") == report_rows(fitted, "test")
    assert run("predict", recipe, ckpt_path=last) == 0
    check_predictions(tiny, tmp_path, report_rows(fitted, "test"))


def check_predictions(tiny: CaptioningSystem, root: Path, tested: list[dict[str, Any]]) -> None:
    """Assert that predictions.jsonl has every row of the manifest once, in order, with the prediction of the test."""
    manifest = [json.loads(line) for line in (tiny.folder / "test.jsonl").read_text().splitlines()]
    written = [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]
    kinds = [row["id"][0] for row in manifest]
    assert kinds != sorted(kinds)  # else batches of one kind would be in order by themselves
    assert [row["id"] for row in written] == [row["id"] for row in manifest]
    assert [row["references"] for row in written] == [row["captions"] for row in manifest]
    assert {row["id"]: row["prediction"] for row in written} == {row["id"]: row["prediction"] for row in tested}
    assert all(row["candidates"][0]["text"] == row["prediction"] for row in written)


def test_predictions_can_be_evaluated(tiny: CaptioningSystem, fitted: Path, tmp_path: Path, capfd: Any) -> None:
    from mmprefix.cli.main import main

    recipe = tiny.recipe(tiny.config(), tmp_path)
    assert run("predict", recipe, ckpt_path=fitted / "checkpoints" / "last.ckpt") == 0
    capfd.readouterr()
    assert main(["evaluate", str(tmp_path / "predictions.jsonl"), "--json"]) == 0
    scores = json.loads(capfd.readouterr().out)["scores"]
    assert scores["rouge_l"] == pytest.approx(metric_values(fitted, "test/rouge_l")[-1], abs=1e-6)
    assert scores["cider_d"] == pytest.approx(metric_values(fitted, "test/cider_d")[-1], abs=1e-6)


def test_a_prompt_makes_no_group(tiny: CaptioningSystem, fitted: Path, tmp_path: Path) -> None:
    """Groups differ in inputs and contexts; the prompt is common to all."""
    recipe = tiny.recipe(tiny.config(), tmp_path)
    last = fitted / "checkpoints" / "last.ckpt"
    assert run("validate", recipe, ckpt_path=last, data__init_args__prompt="a photo:") == 0
    assert {row["group"] for row in report_rows(tmp_path, "val")} == {"image", "audio"}


def test_rows_of_equal_ids_in_two_manifests_are_all_reported(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ids are unique within a manifest only; a row without one is named by its line."""
    rows = [json.loads(line) for line in (tiny.folder / "train.jsonl").read_text().splitlines()]
    pictures = [row | {"image": str(tiny.folder / row["image"])} for row in rows if "image" in row]
    config = tiny.config(["image"])
    config["data"]["init_args"]["val"] = files = [str(tmp_path / f"{n}.jsonl") for n in range(2)]
    for n, file in enumerate(files):
        Path(file).write_text(
            "".join(json.dumps(row | {"id": i}) + "\n" for i, row in enumerate(pictures[3 * n :][:3]))
        )
    capfd.readouterr()
    assert run("validate", tiny.recipe(config, tmp_path)) == 0
    assert "the mappers are untrained" in capfd.readouterr().err
    assert len(report_rows(tmp_path, "val")) == 6


def test_bfloat16_accumulation_and_clipping(tiny: CaptioningSystem, tmp_path: Path) -> None:
    config = tiny.config()
    config["trainer"] |= {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.001}
    config["model"] |= {"schedule": "constant", "warmup": 0}
    config["model"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
    recipe = tiny.recipe(config, tmp_path)
    assert run("fit", recipe, trainer__max_epochs=1) == 0
    training = training_record(tmp_path)
    assert len(training.steps) == 4
    moved = [(training.after[name] - training.before[name]).flatten() for name in training.gradients]
    assert 0 < torch.cat(moved).norm() <= 2 * 0.001 * 1.01  # two steps of SGD at rate 1, each clipped to this length
    assert all(math.isfinite(value) for value in metric_values(tmp_path, "train/loss"))
    assert math.isfinite(metric_values(tmp_path, "val/loss")[-1])


def cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        ("constant", 0, [1.0] * 10),
        ("constant", 4, [0.2, 0.4, 0.6, 0.8] + [1.0] * 6),
        ("linear", 0, [1 - n / 10 for n in range(10)]),
        ("linear", 0.2, [1 / 3, 2 / 3] + [1 - n / 8 for n in range(8)]),
        ("cosine", 0.1, [1 / 2] + [cosine(n / 9) for n in range(9)]),
        ("cosine", 1, [1 / 2] + [cosine(n / 9) for n in range(9)]),
    ],
)
def test_schedules_equal_their_formulas(kind: str, warmup: float, expected: list[float]) -> None:
    schedule = lr_factor(kind, warmup, 10)
    assert [schedule(step) for step in range(10)] == pytest.approx(expected)
    assert schedule(50) == pytest.approx(1.0 if kind == "constant" else 0.0)  # past the end it stays


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model__warmup": -1}, "model.warmup -1"),
        ({"trainer__max_epochs": -1}, "model.schedule cosine, model.warmup 0.05: this run has no last step"),
        ({"save_to": "recipe.yaml"}, "recipe.yaml: is a file"),
        ({"save_to": "."}, "is not empty and no saved model"),
    ],
)
def test_impossible_options_are_refused_before_the_first_step(
    options: dict[str, Any], message: str, tiny: CaptioningSystem, tmp_path: Path, capfd: Any
) -> None:
    if "save_to" in options:
        options = {"save_to": tmp_path / options["save_to"]}
    recipe = tiny.recipe(tiny.config(["image"]), tmp_path)
    assert run("fit", recipe, **options) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("mmprefix: ")
    assert message in last
    assert not (tmp_path / "process0.pt").exists()


def test_two_equal_answers_are_refused(tiny: CaptioningSystem) -> None:
    with pytest.raises(InputError, match=r"model.answers .*: give two words"):
        PrefixTask({}, CausalDecoder(tiny.path("another")), prefix=partial(Learned, length=2), answers=["yes", "yes"])


def test_labels_are_smoothed_in_training_alone(tiny: CaptioningSystem) -> None:
    prefix = partial(Learned, length=2)
    plain = PrefixTask({}, CausalDecoder(tiny.path("another")), prefix=prefix)
    smooth = PrefixTask({}, CausalDecoder(tiny.path("another")), prefix=prefix, label_smoothing=0.3)
    smooth.load_state_dict(plain.state_dict())
    batch = replace(make_batch({}, [""]), targets=[["a dog barks"]])
    assert smooth.training_loss(batch).item() == pytest.approx(smooth.model.text_loss(batch, 0.3).mean().item())
    assert smooth.training_loss(batch).item() != pytest.approx(plain.training_loss(batch).item(), rel=1e-4)
    smooth.validation_step(batch, 0)
    plain.validation_step(batch, 0)
    assert smooth.rows[0].nll == pytest.approx(plain.rows[0].nll)
    with pytest.raises(InputError, match=r"model\.label_smoothing 1\.0: give a share"):
        PrefixTask({}, CausalDecoder(tiny.path("another")), prefix=prefix, label_smoothing=1.0)


def test_a_run_without_end_trains_at_a_constant_rate(tiny: CaptioningSystem, tmp_path: Path) -> None:
    config = tiny.config(["audio"])
    stop = {"class_path": "tiny.captioning_system.Stop", "init_args": {"at": 5}}
    config["trainer"] |= {"max_epochs": -1, "enable_checkpointing": False, "callbacks": [stop]}
    config["model"] |= {"schedule": "constant", "warmup": 2}
    config["data"]["init_args"]["val"] = None
    assert run("fit", tiny.recipe(config, tmp_path)) == 0
    rates = training_record(tmp_path).rates
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert rates[3:] == [rates[2]] * (len(rates) - 3)
    assert len(rates) >= 5


def test_a_dry_run_prints_sizes_and_stops(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", tiny.recipe(tiny.config(), tmp_path), dry_run=True) == 0
    rows = capfd.readouterr().out.splitlines()
    table = {line[:24].strip(): line.split()[-1] for line in rows if line[:24].strip()}
    assert table["image encoder"] == table["audio encoder"] == table["decoder"] == "0"
    assert int(table["all"].replace(",", "")) == int(table["image mapper"].replace(",", "")) + int(
        table["audio mapper"].replace(",", "")
    )
    assert not (tmp_path / "process0.pt").exists()


def test_a_checkpoint_of_the_command_line_holds_the_mappers_only(fitted: Path) -> None:
    names = checkpoint_tensors(fitted / "checkpoints" / "last.ckpt")
    assert names.keys() == named(training_record(fitted).after, "model.mappers.").keys()


def test_a_training_is_saved_where_there_is_no_row_to_test_on(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny.config()
    del config["data"]["init_args"]["test"]
    saved = tmp_path / "model"
    assert run("fit", tiny.recipe(config, tmp_path), save_to=saved, test_after_fit=True, trainer__max_epochs=1) == 0
    assert "not tested: there is no row to test on: give data.test FILE" in capfd.readouterr().err
    assert (saved / "model.safetensors").is_file()
