"""Products of few rows against the usual ones: values, gradients, weights that change, copies that can be copied."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmprefix.fast import small_batch_linear


def layers(kind: str, bias: bool = True) -> tuple[nn.Linear | Conv1D, nn.Linear | Conv1D]:
    """A frozen layer, and the same one prepared."""
    torch.manual_seed(0)
    plain = Conv1D(40, 24) if kind == "conv" else nn.Linear(24, 40, bias=bias)
    nn.init.normal_(plain.bias) if plain.bias is not None else None
    fast = deepcopy(plain.requires_grad_(False))
    small_batch_linear.patch_linears(nn.Sequential(fast))
    return plain, fast


def packed(layer: nn.Module) -> bool:
    return layer.forward.packed_weight is not None  # pyright: ignore


@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv", True)])
@pytest.mark.parametrize("shape", [(24,), (1, 1, 24), (2, 24), (3, 5, 24), (48, 24), (49, 24), (0, 24)])
def test_the_product_is_the_same(kind: str, bias: bool, shape: tuple[int, ...]) -> None:
    plain, fast = layers(kind, bias)
    rows = torch.randn(shape)
    with torch.inference_mode():
        found, want = fast(rows), plain(rows)
    assert found.shape == want.shape
    assert torch.allclose(found, want, rtol=1e-5, atol=1e-5)
    assert packed(fast) == ((2 if kind == "conv" else 1) <= rows.numel() // 24 <= small_batch_linear.MAX_ROWS)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_weights_that_change_are_seen(kind: str) -> None:
    plain, fast = layers(kind)
    rows = torch.randn(3, 24)
    fast(rows)
    for layer in (plain, fast):
        with torch.no_grad():
            layer.weight.mul_(2)
        layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
    assert torch.allclose(fast(rows), plain(rows), rtol=1e-5, atol=1e-5)


def test_what_is_trained_or_trains_goes_the_usual_way() -> None:
    plain, fast = layers("linear")
    rows = torch.randn(3, 24, requires_grad=True)
    fast(rows).sum().backward()
    assert rows.grad is not None
    assert not packed(fast)
    learned = fast.requires_grad_(True)
    learned(torch.randn(3, 24))
    assert not packed(fast)
    assert torch.allclose(fast.double()(rows.double()), plain.double()(rows.double()))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_bits_are_the_same_from_the_first_call_on(kind: str) -> None:
    """Also after a copy was dropped: by pickling, copying, or training in between."""
    _, fast = layers(kind)
    some = [torch.randn(count, 24) for count in (1, 2, 5, 48, 60)]
    with torch.no_grad():
        first = [fast(rows) for rows in some]
        for _ in range(30):
            fast(some[2])
        fast.requires_grad_(True)(some[2])
        fast.requires_grad_(False)
        for again in (fast, pickle.loads(pickle.dumps(fast)), deepcopy(fast)):
            assert all(torch.equal(again(rows), want) for rows, want in zip(some, first, strict=True))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("count", [1, 2, 5, 48, 60])
def test_where_the_weights_lie_does_not_matter(kind: str, count: int) -> None:
    """In a file they begin anywhere."""
    plain, fast = layers(kind)
    rows, want = torch.randn(count, 24), []
    with torch.no_grad():
        for shift in range(5):
            space = torch.empty(plain.weight.numel() + shift)
            fast.weight.data = space[shift:].view_as(plain.weight).copy_(plain.weight)
            want.append(fast(rows))
    assert all(torch.equal(one, want[0]) for one in want)


def test_weights_in_the_place_of_others_are_seen() -> None:
    """Memory that was given back is often given to the next who asks; a copy knows its weights by more than a place."""
    _, fast = layers("linear")
    rows, places = torch.randn(3, 24), set()
    for number in range(20):
        fast.weight = nn.Parameter(torch.full((40, 24), float(number)), requires_grad=False)
        places.add(fast.weight.data_ptr())
        wanted = number * rows.sum(-1, keepdim=True) + fast.bias
        assert torch.allclose(fast(rows), wanted, atol=1e-3)
    assert len(places) < 20  # else nothing was shown


def test_a_large_model_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_batch_linear, "MAX_COPY_BYTES", 24 * 40 * 4 - 1)
    _, fast = layers("linear")
    assert "forward" not in vars(fast)


def test_copies_of_a_layer_are_layers() -> None:
    plain, fast = layers("linear")
    fast(torch.randn(3, 24))
    again = pickle.loads(pickle.dumps(fast))
    twin = deepcopy(fast)
    rows = torch.randn(4, 24)
    twin.weight.data.zero_()
    assert torch.allclose(again(rows), plain(rows), rtol=1e-5, atol=1e-5)
    assert torch.equal(twin(rows), twin.bias.expand(4, -1))
    assert torch.allclose(fast(rows), plain(rows), rtol=1e-5, atol=1e-5)
