"""Compiled layers train equally."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path

import pytest
import torch

from mmprefix.decoders.causal import CausalDecoder
from tiny.captioning_system import build, metric_values, quietly, run, training_record

pytestmark = quietly


@pytest.mark.slow
def test_compiled_layers_train_equally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled with the backend "aot_eager": it traces graphs without generating code, which would take a minute."""
    monkeypatch.setattr(CausalDecoder, "compile_layers", partialmethod(CausalDecoder.compile_layers, "aot_eager"))
    (tmp_path / "tiny").mkdir()
    tiny = build(tmp_path / "tiny", steps=10)
    for name, compiles in (("plain", False), ("compiled", True)):
        recipe = tiny.recipe(tiny.config(("audio",)), tmp_path / name)
        assert run("fit", recipe, model__compile=compiles, trainer__max_steps=1, data__val="[]") == 0
    plain, compiled = (training_record(tmp_path / name) for name in ("plain", "compiled"))
    for name, tensor in plain.after.items():
        assert torch.allclose(compiled.after[name], tensor, atol=1e-3), name
    for figure in ("train/loss", "train/grad_norm"):
        (value,) = metric_values(tmp_path / "compiled", figure)
        assert [value] == pytest.approx(metric_values(tmp_path / "plain", figure), rel=1e-4)
