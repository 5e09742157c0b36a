"""Fused GELU, fused optimizer steps, precision and compilation: equal numbers; explicit options are kept."""

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


def test_fused_gelu_equals_the_formula() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), NewGELUActivation(), nn.Sequential(NewGELUActivation()))
    fast = deepcopy(plain)
    fuse_gelu(fast)
    assert not any(isinstance(module, NewGELUActivation) for module in fast.modules())
    values = torch.linspace(-8, 8, 4000, dtype=torch.float64).view(-1, 4)
    assert torch.allclose(fast[1](values), plain[1](values), atol=1e-12)
    assert torch.allclose(fast.float()(values.float()), plain.float()(values.float()), atol=1e-6)


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_fused_optimizer_steps_are_equal(optimizer_class: Any) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 8)
    fast = deepcopy(plain)
    rows = torch.randn(5, 8)
    for layer in (plain, fast):
        optimizer = optimizer_class(layer.parameters(), lr=0.05, weight_decay=0.1)
        if layer is fast:
            use_fused_optimizer(optimizer)
            assert optimizer.param_groups[0]["fused"]
        for _ in range(4):
            optimizer.zero_grad()
            layer(rows).square().sum().backward()
            optimizer.step()
    assert torch.allclose(plain.weight, fast.weight, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"fused": False}, {"capturable": True}, {"differentiable": True}]
)
def test_explicit_options_of_an_optimizer_are_kept(options: dict[str, bool]) -> None:
    optimizer = cast(Any, torch.optim.AdamW)(nn.Linear(2, 2).parameters(), **options)
    use_fused_optimizer(optimizer)
    assert not optimizer.param_groups[0]["fused"]
    use_fused_optimizer(torch.optim.Adagrad(nn.Linear(2, 2).parameters()))
    use_fused_optimizer(torch.optim.RMSprop(nn.Linear(2, 2).parameters()))  # has no fused kernel


def test_half_precision_becomes_float32_on_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
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
    output = "".join(capfd.readouterr())
    assert "trainer.precision bf16-mixed: many times slower on a CPU" in output
    assert "Automatic Mixed Precision" not in output


@pytest.mark.slow
def test_compiled_layers_train_equally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled with the backend "aot_eager": it traces graphs without generating code, which would take a minute."""
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
