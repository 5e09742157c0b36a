"""Kernels in the place of slower ones: the same numbers, and nothing that was asked for otherwise is changed."""

from __future__ import annotations

from copy import deepcopy
from functools import partialmethod
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers.activations import NewGELUActivation

from mmprefix.cli.training.lightning_cli import usable_precision
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.fast.gelu import fuse_gelu
from mmprefix.training.optimizer import use_fused_optimizer
from tiny.captioning_system import build, metric_values, quietly, run, training_record

pytestmark = quietly


def test_gelu_is_the_same_function() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), NewGELUActivation(), nn.Sequential(NewGELUActivation()))
    fast = deepcopy(plain)
    fuse_gelu(fast)
    assert not any(isinstance(module, NewGELUActivation) for module in fast.modules())
    values = torch.linspace(-8, 8, 4000, dtype=torch.float64).view(-1, 4)
    assert torch.allclose(fast[1](values), plain[1](values), atol=1e-12)
    assert torch.allclose(fast.float()(values.float()), plain.float()(values.float()), atol=1e-6)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_steps_are_the_same(kind: Any) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 8)
    fast = deepcopy(plain)
    rows = torch.randn(5, 8)
    for layer in (plain, fast):
        optimizer = kind(layer.parameters(), lr=0.05, weight_decay=0.1)
        if layer is fast:
            use_fused_optimizer(optimizer)
            assert optimizer.param_groups[0]["fused"]
        for _ in range(4):
            optimizer.zero_grad()
            layer(rows).square().sum().backward()
            optimizer.step()
    assert torch.allclose(plain.weight, fast.weight, atol=1e-6)


@pytest.mark.parametrize("asked", [{"foreach": True}, {"fused": False}, {"capturable": True}, {"differentiable": True}])
def test_what_was_asked_for_stays(asked: dict[str, bool]) -> None:
    optimizer = cast(Any, torch.optim.AdamW)(nn.Linear(2, 2).parameters(), **asked)
    use_fused_optimizer(optimizer)
    assert not optimizer.param_groups[0]["fused"]
    use_fused_optimizer(torch.optim.Adagrad(nn.Linear(2, 2).parameters()))
    use_fused_optimizer(torch.optim.RMSprop(nn.Linear(2, 2).parameters()))  # has no such kernel


def test_half_precision_on_a_cpu_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    for precision in ("bf16-mixed", "bf16-true", "16-mixed", 16, "bf16"):
        assert usable_precision(precision, "cpu") == "32-true"
        assert f"trainer.precision {precision}: many times slower on a CPU" in caplog.text
        assert usable_precision(precision, "cuda") == precision
    for precision in (None, 32, "32-true", "64-true"):
        assert usable_precision(precision, "cpu") == precision


def test_a_recipe_for_a_gpu_trains_on_a_cpu(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "tiny").mkdir()
    tiny = build(tmp_path / "tiny", steps=10)
    recipe = tiny.recipe(tiny.config(), tmp_path / "run")
    assert run("fit", recipe, trainer__precision="bf16-mixed", trainer__max_steps=1) == 0
    said = "".join(capfd.readouterr())
    assert "trainer.precision bf16-mixed: many times slower on a CPU" in said
    assert "Automatic Mixed Precision" not in said


@pytest.mark.slow
def test_compiled_layers_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler's own graphs; code is not generated from them here, which takes a minute."""
    monkeypatch.setattr(CausalDecoder, "compile_layers", partialmethod(CausalDecoder.compile_layers, "aot_eager"))
    (tmp_path / "tiny").mkdir()
    tiny = build(tmp_path / "tiny", steps=10)
    for name, compiles in (("plain", False), ("compiled", True)):
        recipe = tiny.recipe(tiny.config(("audio",)), tmp_path / name)
        assert run("fit", recipe, model__compile=compiles, trainer__max_steps=2, data__val="[]") == 0
    plain, compiled = (training_record(tmp_path / name) for name in ("plain", "compiled"))
    for name, tensor in plain.after.items():
        assert torch.allclose(compiled.after[name], tensor, atol=1e-3), name
    assert metric_values(tmp_path / "compiled", "train/loss") == pytest.approx(
        metric_values(tmp_path / "plain", "train/loss"), rel=1e-4
    )
