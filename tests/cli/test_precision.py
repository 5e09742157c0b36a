"""Precision of a training: half precision becomes float32 on a CPU, with a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmprefix.cli.training.run_options import usable_precision
from tiny.captioning_system import build, quietly, run

pytestmark = quietly


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
