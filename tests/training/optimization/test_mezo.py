"""MeZO: its formula with the noise drawn again, what its probes leave, and a training without a graph."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.training.optimization.mezo import MeZO
from tiny.captioning_system import CaptioningSystem, checkpoint_tensors, metric_values, quietly, run, training_record

pytestmark = [pytest.mark.numeric, *quietly]
START = [torch.randn(4, 3, generator=torch.Generator().manual_seed(7)), torch.tensor([0.5, -1.0])]
TARGETS = [torch.ones(4, 3), torch.zeros(2)]


def copies() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(value.clone()) for value in START]


def quadratic(parameters: list[Any]) -> Tensor:
    return torch.stack([(p - t).square().sum() for p, t in zip(parameters, TARGETS, strict=True)]).sum()


def noise(seed: int, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed((seed << 32) + step)
    return [torch.randn(value.shape, generator=generator) for value in START]


def test_a_step_is_the_formula_of_the_paper() -> None:
    ours, theirs = copies(), [value.clone() for value in START]
    optimizer = MeZO(ours, lr=0.01, eps=0.05, weight_decay=0.1, seed=3)
    for step in range(4):
        z = noise(3, step)
        above = quadratic([p + 0.05 * n for p, n in zip(theirs, z, strict=True)])
        below = quadratic([p - 0.05 * n for p, n in zip(theirs, z, strict=True)])
        slope = (above - below) / 0.1
        decays = (0.1, 0.0)  # a matrix and a vector
        theirs = [p - 0.01 * (slope * n + d * p) for p, n, d in zip(theirs, z, decays, strict=True)]
        assert optimizer.step(lambda: quadratic(ours)) == pytest.approx(float((above + below) / 2), rel=1e-4)
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.allclose(mine, other, atol=1e-4)


def test_the_estimate_is_the_slope_along_z() -> None:
    """Two losses of a quadratic give the directional derivative without an error."""
    ours = copies()
    gradients = [2 * (p - t) for p, t in zip(START, TARGETS, strict=True)]
    z = noise(0, 0)
    slope = sum((g * n).sum() for g, n in zip(gradients, z, strict=True))
    MeZO(ours, lr=1.0, eps=0.1).step(lambda: quadratic(ours))
    for mine, start, n in zip(ours, START, z, strict=True):
        assert torch.allclose(mine, start - slope * n, atol=2e-3)


def test_parameters_come_back_within_rounding_and_see_no_graph() -> None:
    ours = copies()
    probes: list[list[Tensor]] = []

    def closure() -> float:
        probes.append([p.detach().clone() for p in ours])
        assert not torch.is_grad_enabled()
        return 1.0  # both losses are equal: nothing moves

    MeZO(ours, lr=0.5, eps=0.1).step(closure)
    assert len(probes) == 2
    for mine, start, n, above, below in zip(ours, START, noise(0, 0), *probes, strict=True):
        assert torch.allclose(above, start + 0.1 * n, atol=1e-6)
        assert torch.allclose(below, start - 0.1 * n, atol=1e-6)
        assert torch.allclose(mine, start, atol=1e-6)
        assert mine.grad is None


def test_a_state_is_saved_and_loaded() -> None:
    ours = copies()
    optimizer = MeZO(ours, lr=0.01)
    for _ in range(3):
        optimizer.step(lambda: quadratic(ours))
    others = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    resumed = MeZO(others, lr=0.01)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    optimizer.step(lambda: quadratic(ours))
    resumed.step(lambda: quadratic(others))
    assert all(torch.equal(mine, other) for mine, other in zip(ours, others, strict=True))


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"eps": -1.0}])
def test_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"MeZO\.{next(iter(options))} .*above 0"):
        MeZO(copies(), **options)
    with pytest.raises(InputError, match="closure"):
        MeZO(copies()).step()


@pytest.mark.parametrize("losses", [(math.inf, 1.0), (math.inf, math.inf), (1.0, -math.inf)])
def test_a_loss_without_end_moves_nothing_and_is_refused(losses: tuple[float, float]) -> None:
    ours, around = copies(), iter(losses)
    before = [p.detach().clone() for p in ours]
    with pytest.raises(InputError, match=r"MeZO: the losses on both sides are .*; lower eps, or the rate"):
        MeZO(ours).step(lambda: next(around))
    for parameter, old in zip(ours, before, strict=True):
        assert torch.allclose(parameter, old, atol=1e-6)


def config(tiny: CaptioningSystem, root: Path, **trainer: Any) -> dict[str, Any]:
    """Recipe of a prefix that learns what the captions of the pictures have in common."""
    made = tiny.config(("image",))
    lines = (tiny.folder / "train.jsonl").read_text().splitlines()
    rows = [{"id": row["id"], "captions": row["captions"]} for row in map(json.loads, lines) if "image" in row]
    root.mkdir(parents=True, exist_ok=True)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made["data"]["init_args"] |= {key: [str(root / "rows.jsonl")] for key in ("train", "val", "test")}
    table = {
        "class_path": "mmprefix.mappers.p_tuning_v2.DeepTable",
        "init_args": {"length": 3, "std": 1.0, "dropout": 0.05},
    }
    optimizer = {"class_path": "mmprefix.training.optimization.mezo.MeZO", "init_args": {"lr": 0.4, "eps": 0.1}}
    made["model"] |= {"branches": {}, "prefix": table, "optimizer": optimizer, "schedule": "linear"}
    made["trainer"] |= {"check_val_every_n_epoch": 2, **trainer}
    return made


def test_a_recipe_trains_a_prefix_without_gradients_and_resumes_to_the_bit(
    tiny: CaptioningSystem, tmp_path: Path
) -> None:
    epochs = 12
    whole = tiny.recipe(config(tiny, tmp_path, max_epochs=epochs, gradient_clip_val=1.0), tmp_path / "whole")
    assert run("fit", whole, save_to=tmp_path / "model") == 0
    record, losses = training_record(tmp_path / "whole"), metric_values(tmp_path / "whole", "train/loss")
    assert record.gradients == []
    assert not torch.equal(record.before["model.task_prefix.table"], record.after["model.task_prefix.table"])
    assert len(losses) == len(record.steps)
    validation = metric_values(tmp_path / "whole", "val/loss")
    assert validation[-1] < validation[0] - 0.02
    assert record.rates[-1] < 0.2 * max(record.rates)
    last = checkpoint_tensors(max((tmp_path / "whole").rglob("last.ckpt")))
    broken = config(tiny, tmp_path, max_epochs=epochs)
    broken["trainer"]["callbacks"] = [{"class_path": "tiny.captioning_system.Crash", "init_args": {"at": 15}}]
    assert run("fit", tiny.recipe(broken, tmp_path / "parts")) != 0
    again = tiny.recipe(config(tiny, tmp_path, max_epochs=epochs), tmp_path / "parts")
    checkpoint = max((tmp_path / "parts").rglob("last.ckpt"))
    assert run("fit", again, ckpt_path=checkpoint) == 0
    resumed = checkpoint_tensors(max((tmp_path / "parts").rglob("last.ckpt"), key=lambda f: f.stat().st_mtime_ns))
    assert torch.equal(resumed["model.task_prefix.table"], last["model.task_prefix.table"])


def test_gradients_cannot_be_added_up(tiny: CaptioningSystem, tmp_path: Path, capfd: Any) -> None:
    recipe = tiny.recipe(config(tiny, tmp_path, max_epochs=1, accumulate_grad_batches=2), tmp_path)
    assert run("fit", recipe) == 2
    assert "accumulate_grad_batches 2" in capfd.readouterr().err
