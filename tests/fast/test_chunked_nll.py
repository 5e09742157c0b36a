"""Chunked negative log-likelihood against the plain formula: values, gradients, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmprefix.fast import chunked_nll as module
from mmprefix.fast.chunked_nll import chunked_nll


def plain(hidden: Tensor, head: nn.Linear, row: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    logits = head(hidden)[row].float()
    return nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)


def case(rows: int, targets: int, bias: bool) -> tuple[Tensor, nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(rows)
    head = nn.Linear(24, 501, bias=bias).requires_grad_(False)
    row = torch.randint(0, rows, (targets,))
    return torch.randn(rows, 24), head, row, torch.randint(0, 501, (targets,)), torch.rand(targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "targets"), [(1, 1), (1, 7), (16, 16), (37, 50), (37, 5), (48, 300)])
def test_it_is_cross_entropy(
    rows: int, targets: int, bias: bool, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 16)
    hidden, head, row, target, weight = case(rows, targets, bias)
    gradients = []
    for form in (plain, chunked_nll):
        leaf = hidden.clone().requires_grad_()
        nll = form(leaf, head, row, target, label_smoothing=smoothing)
        (nll * weight).sum().backward()
        assert leaf.grad is not None
        gradients.append((nll.detach(), leaf.grad))
    (expected_nll, expected_gradient), (nll, gradient) = gradients
    assert torch.allclose(nll, expected_nll, rtol=2e-6, atol=1e-6)
    assert (gradient - expected_gradient).norm() <= 5e-6 * expected_gradient.norm()


def test_extreme_logits_give_finite_values() -> None:
    hidden, head, row, target, _ = case(5, 9, bias=False)
    nll = chunked_nll(hidden * 1e4, head, row, target)
    assert nll.isfinite().all()
    assert torch.allclose(nll, plain(hidden * 1e4, head, row, target), rtol=1e-5)


def test_half_precision_is_summed_in_float32() -> None:
    hidden, head, row, target, _ = case(40, 60, bias=False)
    nll = chunked_nll(hidden.bfloat16(), head.bfloat16(), row, target)
    assert nll.dtype == torch.float32
    assert torch.allclose(nll, plain(hidden.bfloat16(), head, row, target), rtol=1e-2, atol=1e-2)


def test_gradients_in_half_precision_read_nothing_but_the_logits() -> None:
    """Kernels for AMX read what stands behind a row of an odd vocabulary: memory that held NaN before."""
    for vocabulary in (59, 61, 67):
        hidden, head, row, target, _ = case(40, vocabulary, bias=False)
        used = [torch.full((40 * 64,), float("nan"), dtype=torch.bfloat16) for _ in range(50)]
        del used
        leaf = hidden.detach().bfloat16().requires_grad_()
        chunked_nll(leaf, head.bfloat16(), row, target).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_without_a_gradient_nothing_is_stored() -> None:
    hidden, head, row, target, _ = case(5, 9, bias=False)
    assert not chunked_nll(hidden, head, row, target).requires_grad


class LargestResult(TorchDispatchMode):
    """Number of elements of the largest result of any operation."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for part in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(part, Tensor):
                self.most = max(self.most, part.numel())
        return output


def test_the_logits_of_all_rows_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 8)
    hidden, head, row, target, _ = case(200, 200, bias=False)
    hidden.requires_grad_()
    with LargestResult() as tracker:
        chunked_nll(hidden, head, row, target).sum().backward()
    assert tracker.most == head.weight.numel()  # 24 rows' worth of logits; 200 rows would be 8 times as many
