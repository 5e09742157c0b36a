"""Linear layers for few rows against plain ones: values, gradients, changed weights, pickling and copying."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmprefix.fast import small_batch_linear


def layers(kind: str, bias: bool = True) -> tuple[nn.Linear | Conv1D, nn.Linear | Conv1D]:
    """Frozen layer, and a patched copy."""
    torch.manual_seed(0)
    plain = Conv1D(40, 24) if kind == "conv" else nn.Linear(24, 40, bias=bias)
    nn.init.normal_(plain.bias) if plain.bias is not None else None
    fast = deepcopy(plain.requires_grad_(False))
    small_batch_linear.patch_linears(nn.Sequential(fast))
    return plain, fast


def packed(layer: nn.Module) -> bool:
    """True once a patched layer has a packed copy of its weight."""
    return layer.forward.packed.copy is not None  # pyright: ignore


@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv", True)])
@pytest.mark.parametrize("shape", [(24,), (1, 1, 24), (2, 24), (3, 5, 24), (48, 24), (49, 24), (0, 24)])
def test_products_equal_those_of_a_plain_layer(kind: str, bias: bool, shape: tuple[int, ...]) -> None:
    plain, fast = layers(kind, bias)
    rows = torch.randn(shape)
    with torch.inference_mode():
        output, expected = fast(rows), plain(rows)
    assert output.shape == expected.shape
    assert torch.allclose(output, expected, rtol=1e-5, atol=1e-5)
    assert packed(fast) == ((2 if kind == "conv" else 1) <= rows.numel() // 24 <= small_batch_linear.MAX_ROWS)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_changed_weights_are_packed_again(kind: str) -> None:
    plain, fast = layers(kind)
    rows = torch.randn(3, 24)
    fast(rows)
    for layer in (plain, fast):
        with torch.no_grad():
            layer.weight.mul_(2)
        layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
    assert torch.allclose(fast(rows), plain(rows), rtol=1e-5, atol=1e-5)


def test_gradients_and_trained_weights_use_the_plain_product() -> None:
    plain, fast = layers("linear")
    rows = torch.randn(3, 24, requires_grad=True)
    fast(rows).sum().backward()
    assert rows.grad is not None
    assert not packed(fast)
    trained = fast.requires_grad_(True)
    trained(torch.randn(3, 24))
    assert not packed(fast)
    assert torch.allclose(fast.double()(rows.double()), plain.double()(rows.double()))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_results_have_the_same_bits_from_the_first_call_on(kind: str) -> None:
    """Including calls after the packed copy was dropped by pickling, copying, or training."""
    _, fast = layers(kind)
    batches = [torch.randn(count, 24) for count in (1, 2, 5, 48, 60)]
    with torch.no_grad():
        first = [fast(rows) for rows in batches]
        for _ in range(30):
            fast(batches[2])
        fast.requires_grad_(True)(batches[2])
        fast.requires_grad_(False)
        for layer in (fast, pickle.loads(pickle.dumps(fast)), deepcopy(fast)):
            assert all(torch.equal(layer(rows), expected) for rows, expected in zip(batches, first, strict=True))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("count", [1, 2, 5, 48, 60])
def test_the_address_of_the_weights_does_not_matter(kind: str, count: int) -> None:
    """Weights in a file begin at any offset."""
    plain, fast = layers(kind)
    rows, outputs = torch.randn(count, 24), []
    with torch.no_grad():
        for shift in range(5):
            storage = torch.empty(plain.weight.numel() + shift)
            fast.weight.data = storage[shift:].view_as(plain.weight).copy_(plain.weight)
            outputs.append(fast(rows))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_new_weights_at_the_address_of_old_ones_are_packed_again() -> None:
    """Freed memory is often allocated again, so the address alone does not identify weights."""
    _, fast = layers("linear")
    rows, addresses = torch.randn(3, 24), set()
    for number in range(20):
        fast.weight = nn.Parameter(torch.full((40, 24), float(number)), requires_grad=False)
        addresses.add(fast.weight.data_ptr())
        expected = number * rows.sum(-1, keepdim=True) + fast.bias
        assert torch.allclose(fast(rows), expected, atol=1e-3)
    assert len(addresses) < 20  # some address was used again


def test_a_large_model_is_not_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_batch_linear, "MAX_COPY_BYTES", 24 * 40 * 4 - 1)
    _, fast = layers("linear")
    assert "forward" not in vars(fast)


def test_pickled_and_copied_layers_work() -> None:
    plain, fast = layers("linear")
    fast(torch.randn(3, 24))
    unpickled = pickle.loads(pickle.dumps(fast))
    copied = deepcopy(fast)
    rows = torch.randn(4, 24)
    copied.weight.data.zero_()
    assert torch.allclose(unpickled(rows), plain(rows), rtol=1e-5, atol=1e-5)
    assert torch.equal(copied(rows), copied.bias.expand(4, -1))
    assert torch.allclose(fast(rows), plain(rows), rtol=1e-5, atol=1e-5)
