"""Fused optimizer steps equal plain ones; explicit options of an optimizer are kept."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from torch import nn

from mmprefix.training.optimizer import use_fused_optimizer


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
