"""The benchmark scripts at tiny sizes: table and JSON come out, variants compute the same, the limit is a limit."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmprefix.decoder import CausalDecoder
from mmprefix.mappers.mlp import MLP

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--layers", "2", "--width", "64", "--vocab", "300", "--prefix-length", "4", "--repeat", "2"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of benchmarks/ as it is when run: its folder comes first on the path."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of the whole test process
    return importlib.import_module


@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_train_step(mapper: str, script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "step.json"
    sizes = ["--mapper", mapper, "--batch", "10", "--features", "16", "--pool", "3", "--json", str(file)]
    found = script("train_step").main([*TINY, *sizes])
    assert json.loads(file.read_text()) == found
    printed = capsys.readouterr().out
    rows = {row["variant"]: row for row in found["variants"]}
    ours, alone, everywhere, naive, bucketed, dealt = rows.values()
    for name, row in rows.items():
        line = next(line for line in printed.splitlines() if line.startswith(f"| {name} "))
        assert f" {row['ratio']:.2f} " in line
        assert len(row["cpu_s"]) == len(row["wall_s"]) == 2
        assert min(row["cpu_s"]) <= row["cpu_median"] <= max(row["cpu_s"])
        assert row["loss_error"] <= 2e-6
        assert row["gradient_error"] <= 5e-6
    for row in (alone, everywhere, naive):
        assert row["loss"] == pytest.approx(ours["loss"], rel=2e-6)
        assert row["cpu_median"] / ours["cpu_median"] == row["ratio"]
        assert row["fraction_of_limit"] < 1
    assert dealt["loss"] == pytest.approx(bucketed["loss"], rel=2e-6)
    assert naive["gradient_error"] > 0  # really another computation
    assert bucketed["padding"] < dealt["padding"]
    assert ours["padding"] < alone["padding"] < naive["padding"] < 1
    assert found["batch"]["captions"] == 10
    assert found["batch"]["inputs"] == 2


def test_a_variant_that_computes_something_else_is_named(script: Any) -> None:
    mapper = MLP(0, 3, 4, length=1)
    same = script("train_step").Sameness(mapper, {"right": "right", "wrong": "right"})
    for parameter in mapper.parameters():
        parameter.grad = torch.ones_like(parameter)
    same.keep("right", 0, 2.0)
    mapper.get_parameter("model.0.bias").grad = torch.full((2,), 1.001)
    with pytest.raises(SystemExit, match=r"'wrong': relative error of the loss 0.0e\+00, of the gradients 3.2e-04"):
        same.keep("wrong", 0, 2.0)


def test_the_limit_is_what_an_unpadded_step_computes(script: Any, tmp_path: Path) -> None:
    """Counted by torch, with and without the products of attention; a prefix of one position has nothing to prune."""
    size = script("random_gpt2").Size(2, 128, 300)
    decoder = CausalDecoder(script("random_gpt2").save(tmp_path, size))
    step, captions, limit = script("train_step"), script("captions"), script("limit")
    work = captions.Captioned(torch.randn(3, 8), [["w1 w2 w3 w4 w5 w6", "w7 w8 w9"]] * 3)
    mapper = MLP(0, 8, 128, length=1)

    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            step.shared(mapper, decoder)(work).backward()
        return counter.get_total_flops()

    least = limit.step_operations(size, mapper, step.summaries(work), work)
    assert 0.98 < counted() / least < 1  # the fused attention is not counted
    with sdpa_kernel(SDPBackend.MATH):
        assert 1 < counted() / least < 1.02  # here it is, with what its mask hides
    longer = limit.step_operations(size, MLP(0, 8, 128, length=9), step.summaries(work), work)
    assert longer > least


def test_captions_have_the_lengths_they_are_said_to_have(script: Any) -> None:
    captions = script("captions")
    draws = captions.draw(5, 400, 1000, 4, pool=10)
    lengths = np.array([n for batch in draws.bucketed for row in batch.lengths for n in row])
    assert lengths.mean() == pytest.approx(12, abs=0.3)
    assert lengths.std() == pytest.approx(3, abs=0.3)
    assert lengths.max() <= captions.LONGEST
    bucketed, dealt = ([row for batch in side for row in batch.texts] for side in (draws.bucketed, draws.random))
    assert sorted(bucketed) == sorted(dealt)
    assert captions.draw(5, 400, 1000, 4, pool=10).middle.texts == draws.middle.texts
    assert sum(map(len, draws.middle.apart().texts)) == 400


def test_variants_take_turns(script: Any) -> None:
    seen: list[tuple[str, int]] = []
    names = "abcd"
    times = script("measure").in_turn(
        {name: lambda name=name: name * 2 for name in names}, 3, lambda name, number, got: seen.append((got, number))
    )
    rounds = [[name for name, number in seen if number == n] for n in range(3)]
    assert all(sorted(turn) == [name * 2 for name in names] for turn in rounds)
    assert [number for _, number in seen] == sorted(number for _, number in seen)
    assert len({tuple(turn) for turn in rounds}) > 1
    assert all(len(times[name].cpu) == 3 for name in names)


@pytest.mark.slow
def test_generate(tmp_path: Path) -> None:
    """As the first line of the script says that it is run."""
    file = tmp_path / "generate.json"
    sizes = ["--batches", "1", "4", "--beams", "3", "1", "--new-tokens", "6", "--json", str(file)]
    command = [sys.executable, "benchmarks/generate.py", *TINY, *sizes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    cases = json.loads(file.read_text())["cases"]
    assert [(case["beams"], case["batch"]) for case in cases] == [(3, 1), (3, 4), (1, 1), (1, 4)]
    for case in cases:
        assert case["equal_texts"] == case["batch"]
        assert case["tokens"] == 6 * case["batch"]
        search = "greedy" if case["beams"] == 1 else f"beam {case['beams']}"
        row = next(r for r in ran.stdout.splitlines() if r.startswith(f"| {search} |     {case['batch']} |"))
        assert f" {case['ratio']:.2f} " in row
    assert max(case["distinct_texts"] for case in cases) > 1
