"""Precision of a training: half precision becomes float32 on a CPU, with a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmprefix.cli.training.run_options import usable_precision
from mmprefix.weights.devices import multiplies_bfloat16
from tiny.captioning_system import build, quietly, run

pytestmark = quietly


def test_half_precision_becomes_float32_on_a_cpu_without_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has, "avx2": True})
        for precision in ("bf16-mixed", "bf16-true", "16-mixed", 16, "bf16"):
            caplog.clear()
            usable = has and str(precision).startswith("bf16")
            assert usable_precision(precision, "cpu") == (precision if usable else "32-true")
            assert (f"trainer.precision {precision}: many times slower on a CPU" in caplog.text) is not usable
            assert usable_precision(precision, "cuda") == precision
        for precision in (None, 32, "32-true", "64-true"):
            assert usable_precision(precision, "cpu") == precision


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_recipe_for_a_gpu_trains_on_a_cpu(tmp_path: Path, capfd: Any, precision: str) -> None:
    (tmp_path / "tiny").mkdir()
    tiny = build(tmp_path / "tiny", steps=10)
    recipe = tiny.recipe(tiny.config(), tmp_path / "run")
    assert run("fit", recipe, trainer__precision=precision, trainer__max_steps=1) == 0
    output = "".join(capfd.readouterr())
    replaced = precision == "16-mixed" or not multiplies_bfloat16()
    assert (f"trainer.precision {precision}: many times slower on a CPU" in output) is replaced
