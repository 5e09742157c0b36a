"""RowAdam: equal to AdamW where all rows move, to SparseAdam where some do; rows without gradient stay bit by bit."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from mmprefix.training.optimization.row_adam import RowAdam

pytestmark = pytest.mark.numeric


def test_equals_adamw_where_every_row_has_a_gradient() -> None:
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(4), torch.randn(2, 3, 2)]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    options = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1}
    optimizers = RowAdam(ours, **options), torch.optim.AdamW(theirs, **options)  # type: ignore[arg-type]
    for _ in range(7):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_equals_sparse_adam_on_the_rows_of_a_batch() -> None:
    """SparseAdam counts the steps of the whole table: they agree on a row that moves in each of them."""
    torch.manual_seed(0)
    start = torch.randn(6, 3)
    ours = torch.nn.Parameter(start.clone())
    table = torch.nn.Embedding.from_pretrained(start.clone(), freeze=False, sparse=True)
    optimizer, sparse = RowAdam([ours], lr=0.1), torch.optim.SparseAdam(table.parameters(), lr=0.1)
    for rows in ([0, 2], [2], [2, 5], [2]):
        index = torch.tensor(rows)
        target = torch.randn(len(rows), 3)
        optimizer.zero_grad()
        sparse.zero_grad()
        (ours[index] - target).square().sum().backward()
        (table(index) - target).square().sum().backward()
        optimizer.step()
        sparse.step()
        assert torch.equal(ours[[1, 3, 4]], start[[1, 3, 4]])
        assert torch.allclose(ours[2], table.weight[2], atol=1e-5)
    first = torch.nn.Parameter(start.clone())
    alone = RowAdam([first], lr=0.1)
    (first[torch.tensor([0])] - 1).square().sum().backward()
    alone.step()
    assert torch.allclose(first[0], start[0] - 0.1 * (start[0] - 1).sign(), atol=1e-5)  # Adam's first step


def test_a_state_is_saved_and_loaded() -> None:
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(4, 2))
    optimizer = RowAdam([ours], lr=0.1)
    gradients = [torch.randn(4, 2) * torch.tensor([[1.0], [0.0], [1.0], [0.0]]) for _ in range(4)]
    for gradient in gradients[:2]:
        ours.grad = gradient
        optimizer.step()
    copy = torch.nn.Parameter(ours.detach().clone())
    resumed = RowAdam([copy], lr=0.1)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for gradient in gradients[2:]:
        ours.grad = gradient
        copy.grad = gradient.clone()
        optimizer.step()
        resumed.step()
    assert torch.equal(ours, copy)


def test_a_closure_is_called() -> None:
    ours = torch.nn.Parameter(torch.ones(2))
    optimizer = RowAdam([ours], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = ours.square().sum()
        loss.backward()
        return float(loss)

    assert optimizer.step(closure) == 2.0
    assert torch.allclose(ours, torch.full((2,), 0.9), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_moved_and_resumed_with_all_its_steps(dtype: torch.dtype) -> None:
    ours = torch.nn.Parameter(torch.randn(4, 2).to(dtype))
    optimizer = RowAdam([ours], lr=0.01, weight_decay=0.1)
    gradient = (torch.tensor([[1.0], [0.0], [1.0], [0.0]]) * torch.ones(4, 2)).to(dtype)
    start = ours.detach().clone()
    for _ in range(300):  # bfloat16 counts to 256
        ours.grad = gradient
        optimizer.step()
    assert ours.dtype == dtype
    assert torch.equal(ours[1::2], start[1::2])
    assert (ours[::2] < start[::2] - 1).all()
    resumed = RowAdam([torch.nn.Parameter(ours.detach().clone())], lr=0.01)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    (state,) = resumed.state.values()
    assert state["step"][:, 0].tolist() == [300, 0, 300, 0]
