"""States of one decoder after different prefixes, side by side as rows of one batch, however long each prefix is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmprefix.errors import InputError
from mmprefix.kv_cache.side_terms import SideTerm
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
    return State(cache, mask, torch.cat(last), memory, *_text_updates(states), _side_terms(states))


def _side_terms(states: Sequence[State]) -> tuple[SideTerm, ...]:
    """Terms beside the cache of all states, each of them active in its own state's rows alone."""
    count, device = len(states[0].mask), states[0].mask.device
    rows = torch.arange(len(states) * count, device=device)
    return tuple(
        term.select(rows % count).mask_rows(rows // count != number)
        for number, state in enumerate(states)
        for term in state.side
    )


def _text_updates(states: Sequence[State]) -> tuple[Tensor | None, Tensor | None]:
    """Updates (S*B N E) of the text's embeddings, zeros for states without, and where the texts begin (S*B 1)."""
    updates = [state.text_updates for state in states if state.text_updates is not None]
    if not updates:
        return None, None
    longest = max(part.shape[1] for part in updates)
    none = updates[0].new_zeros(len(updates[0]), longest, updates[0].shape[2])
    padded = [
        none if own is None else pad(own, (0, 0, 0, longest - own.shape[1]))
        for own in (state.text_updates for state in states)
    ]
    starts = [state.mask.sum(1, keepdim=True) if state.before_text is None else state.before_text for state in states]
    return torch.cat(padded), torch.cat(starts)


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
