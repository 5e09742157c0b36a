"""Fused optimizer steps equal plain ones; explicit options of an optimizer are kept."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from torch import nn

from mmprefix.errors import InputError
from mmprefix.training.optimization.optimizer import use_fused_optimizer, with_rates


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


def test_a_part_s_rate_is_a_multiple_of_the_others() -> None:
    names = ("mappers.image.model.weight", "mappers.image2.bias", "task_prefix.table", "decoder.lora.a")
    parameters = {name: nn.Parameter(torch.zeros(3)) for name in names}
    adam: Any = lambda groups: torch.optim.Adam(groups, lr=0.01)  # noqa: E731
    optimizer = with_rates(adam, parameters, {"prefix": 10, "image": 0.5})
    torch.cat(list(parameters.values())).sum().backward()
    optimizer.step()  # Adam's first step is the rate
    steps = {name: -float(parameter[0].detach()) for name, parameter in parameters.items()}
    assert steps == pytest.approx(dict(zip(names, (0.005, 0.01, 0.1, 0.01), strict=True)), rel=1e-4)
    inside = with_rates(adam, parameters, {"image.model.weight": 5, "image": 0.5, "prefix.table": 3})
    assert sorted(group["lr"] for group in inside.param_groups) == pytest.approx([0.01, 0.03, 0.05])
    with pytest.raises(InputError, match=r"model\.rates\.sound: .*give any of decoder, image, image2, prefix"):
        with_rates(adam, parameters, {"sound": 1})
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"model\.rates\.image .*: give a factor above 0"):
            with_rates(adam, parameters, {"image": wrong})
