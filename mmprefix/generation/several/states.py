"""States of one decoder after different prefixes, side by side as rows of one batch, however long each prefix is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmprefix.errors import InputError
from mmprefix.kv_cache.state import Layer, Memory, State


def stack_states(states: Sequence[State]) -> State:
    """States of the same B inputs → one of S*B rows, those of the first state first; shorter ones are padded in front.

    Raises InputError where a state holds no token or embedding yet, so that nothing predicts the first token.
    """
    last = [state.last_hidden for state in states if state.last_hidden is not None]
    if len(last) < len(states):
        raise InputError("several prefixes: nothing was read before the text; give a prompt, or begin with a token")
    cache, mask = _stack([state.cache for state in states], [state.mask for state in states])
    memories = [state.memory for state in states if state.memory is not None]
    if memories and len(memories) < len(states):
        raise InputError("several prefixes: some have frames for the decoder's cross-attention and some have none")
    parts = [memory.layers for memory in memories], [memory.mask for memory in memories]
    memory = Memory(*_stack(*parts)) if memories else None
    return State(cache, mask, torch.cat(last), memory)


def _stack(caches: Sequence[tuple[Layer, ...]], masks: Sequence[Tensor]) -> tuple[tuple[Layer, ...], Tensor]:
    """Layers (B H T K) and masks (B T) of different T → layers (S*B H T' K) and mask (S*B T')."""
    longest = max(mask.shape[1] for mask in masks)
    missing = [longest - mask.shape[1] for mask in masks]

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(part, (0, 0, more, 0)) for part, more in zip(parts, missing, strict=True)])

    layers = tuple(
        (joined([keys for keys, _ in layer]), joined([values for _, values in layer]))
        for layer in zip(*caches, strict=True)
    )
    return layers, torch.cat([pad(mask, (more, 0)) for mask, more in zip(masks, missing, strict=True)])
