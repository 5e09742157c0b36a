"""State: inputs selected and rotated, with and without memory and a last hidden state."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from mmprefix.kv_cache.state import Memory, State

BATCH = 4


def random_state(hidden: bool, memory: bool) -> State:
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=random)

    layers = tuple((numbers(2, 5, 3), numbers(2, 5, 3)) for _ in range(2))
    frames = tuple((numbers(2, 6, 3), numbers(2, 6, 3)) for _ in range(2))
    return State(
        layers, numbers(5) > 0, numbers(8) if hidden else None, Memory(frames, numbers(6) > 0) if memory else None
    )


def tensors(state: State) -> list[Tensor]:
    """All tensors of a state (B ...)."""
    parts = [part for layer in state.cache for part in layer] + [state.mask]
    if state.last_hidden is not None:
        parts.append(state.last_hidden)
    if state.memory is not None:
        parts += [part for layer in state.memory.layers for part in layer] + [state.memory.mask]
    return parts


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("rows", [[2], [3, 0], [1, 1, 2], []])
def test_select_keeps_inputs_in_the_given_order(rows: list[int], hidden: bool, memory: bool) -> None:
    state, index = random_state(hidden, memory), torch.tensor(rows, dtype=torch.long)
    selected = state.select(index)
    assert (selected.last_hidden is None, selected.memory is None) == (not hidden, not memory)
    for part, whole in zip(tensors(selected), tensors(state), strict=True):
        assert torch.equal(part, whole[index])


@pytest.mark.parametrize("by", [0, 1, 3, 5, -1])
def test_roll_is_that_of_torch(by: int) -> None:
    state = random_state(hidden=True, memory=True)
    for part, whole in zip(tensors(state.roll(by)), tensors(state), strict=True):
        assert torch.equal(part, whole.roll(by, 0))


def test_a_state_without_a_cache_can_be_selected() -> None:
    empty = State((), torch.zeros(BATCH, 0, dtype=torch.bool), None)
    selected = empty.select(torch.tensor([1, 2]))
    assert selected.cache == ()
    assert selected.mask.shape == (2, 0)


def test_a_state_is_immutable() -> None:
    state = random_state(hidden=True, memory=False)
    with pytest.raises(FrozenInstanceError):
        state.mask = state.mask  # type: ignore[misc]
