"""Fused GELU equals the formula."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from transformers.activations import NewGELUActivation

from mmprefix.fast.gelu import fuse_gelu


def test_fused_gelu_equals_the_formula() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), NewGELUActivation(), nn.Sequential(NewGELUActivation()))
    fast = deepcopy(plain)
    fuse_gelu(fast)
    assert not any(isinstance(module, NewGELUActivation) for module in fast.modules())
    values = torch.linspace(-8, 8, 4000, dtype=torch.float64).view(-1, 4)
    assert torch.allclose(fast[1](values), plain[1](values), atol=1e-12)
    assert torch.allclose(fast.float()(values.float()), plain.float()(values.float()), atol=1e-6)
