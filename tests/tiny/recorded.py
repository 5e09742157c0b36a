"""Recorded outputs of the original code, and the rule that made the weights behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared"
PARITY = SHARED / "parity"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="../shared/parity is not there")


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of one recorded case."""
    return json.loads((PARITY / f"{name}.json").read_text()), load_file(PARITY / f"{name}.safetensors")


def draw_parameter(key: str, shape: list[int] | torch.Size, seed: int) -> Tensor:
    """Tensor of one parameter by the rule in the fixtures' README."""
    r = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    if len(shape) >= 2:
        return r * (1.0 / math.sqrt(math.prod(shape[1:])))
    if key.endswith("running_var"):
        return (0.1 * r).abs() + 0.5
    return 1 + 0.1 * r if key.endswith(".weight") else 0.1 * r


def draw_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors of a case, drawn by the rule, under the original's names."""
    fill = config["fill"]
    tensors = {}
    for entry in fill["keys"]:
        tensor = draw_parameter(entry["key"], entry["shape"], 1000 * fill["case"] + entry["i"])
        tensors[entry["key"]] = tensor
    return tensors


def relative_error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|."""
    return float((a - b).detach().abs().max() / b.abs().max())
