"""Negative log-likelihoods a few rows at a time, against the plain formula: values, gradients, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmprefix.fast import chunked_nll as module
from mmprefix.fast.chunked_nll import chunked_nll


def plain(hidden: Tensor, head: nn.Linear, row: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(hidden)[row].float(), target, reduction="none")


def case(rows: int, targets: int, bias: bool) -> tuple[Tensor, nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(rows)
    head = nn.Linear(24, 501, bias=bias).requires_grad_(False)
    row = torch.randint(0, rows, (targets,))
    return torch.randn(rows, 24), head, row, torch.randint(0, 501, (targets,)), torch.rand(targets)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "targets"), [(1, 1), (1, 7), (16, 16), (37, 50), (37, 5), (48, 300)])
def test_it_is_cross_entropy(rows: int, targets: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 16)
    hidden, head, row, target, weight = case(rows, targets, bias)
    gradients = []
    for form in (plain, chunked_nll):
        given = hidden.clone().requires_grad_()
        found = form(given, head, row, target)
        (found * weight).sum().backward()
        assert given.grad is not None
        gradients.append((found.detach(), given.grad))
    (want, wanted), (found, gradient) = gradients
    assert torch.allclose(found, want, rtol=2e-6, atol=1e-6)
    assert (gradient - wanted).norm() <= 5e-6 * wanted.norm()


def test_far_logits_stay_finite() -> None:
    hidden, head, row, target, _ = case(5, 9, bias=False)
    found = chunked_nll(hidden * 1e4, head, row, target)
    assert found.isfinite().all()
    assert torch.allclose(found, plain(hidden * 1e4, head, row, target), rtol=1e-5)


def test_half_precision_is_summed_in_float32() -> None:
    hidden, head, row, target, _ = case(40, 60, bias=False)
    found = chunked_nll(hidden.bfloat16(), head.bfloat16(), row, target)
    assert found.dtype == torch.float32
    assert torch.allclose(found, plain(hidden.bfloat16(), head, row, target), rtol=1e-2, atol=1e-2)


def test_without_a_gradient_nothing_is_kept() -> None:
    hidden, head, row, target, _ = case(5, 9, bias=False)
    assert not chunked_nll(hidden, head, row, target).requires_grad


class Largest(TorchDispatchMode):
    """The most numbers that any result of an operation has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(part, Tensor):
                self.most = max(self.most, part.numel())
        return found


def test_the_logits_of_all_rows_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 8)
    hidden, head, row, target, _ = case(200, 200, bias=False)
    hidden.requires_grad_()
    with Largest() as counted:
        chunked_nll(hidden, head, row, target).sum().backward()
    assert counted.most == head.weight.numel()  # 24 rows' worth of logits; 200 rows would be 8 times as many
