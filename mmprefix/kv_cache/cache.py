"""A state in the form that Transformers' models take: key-value cache and attention masks, nothing copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmprefix.kv_cache.state import Layer


def cache_over(layers: Sequence[Layer]) -> DynamicCache:
    """A cache that begins with ``layers`` (not copied; none: an empty cache). A run lengthens it, not the layers."""
    cache = DynamicCache()
    cache.layers.extend(set_layer(DynamicLayer(), *layer) for layer in layers)
    return cache


def set_layer(layer: DynamicLayer, keys: Tensor, values: Tensor) -> DynamicLayer:
    """Put keys and values (B H T K) into ``layer`` without a copy; the layer."""
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    layer.keys, layer.values = keys, values
    return layer


def preallocated_cache(layers: Sequence[Layer], more: int) -> DynamicCache:
    """A cache that begins with a copy of ``layers``, with room for ``more`` positions that is written to in place."""
    cache = DynamicCache()
    cache.layers.extend(_PreallocatedLayer(keys, values, more) for keys, values in layers)
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep the inputs ``rows`` of a preallocated cache, in that order."""
    for layer in cache.layers:
        cast(_PreallocatedLayer, layer).select(rows)


class _PreallocatedLayer(DynamicLayer):
    """Keys and values (B H T K) at the beginning of longer tensors (B H T+more K)."""

    def __init__(self, keys: Tensor, values: Tensor, more: int) -> None:
        super().__init__()
        self.length = keys.shape[2]
        shape = (*keys.shape[:2], self.length + more, keys.shape[3])
        self.buffers = [part.new_empty(shape) for part in (keys, values)]
        for buffer, part in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, : self.length] = part
        self._show()

    def _show(self) -> None:
        keys, values = (buffer[:, :, : self.length] for buffer in self.buffers)
        set_layer(self, keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + key_states.shape[2]
        for buffer, part in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = part
        self._show()
        return cast(Tensor, self.keys), cast(Tensor, self.values)

    def select(self, rows: Tensor) -> None:
        """Keep the inputs ``rows``."""
        self.buffers = [buffer[rows] for buffer in self.buffers]
        self._show()


def causal_mask(mask: Tensor) -> Tensor:
    """(B N), True where real → (B N N), True where a query may look: at real positions up to its own.

    Padding looks at itself too, so that no row of the attention is empty.
    """
    n = mask.shape[1]
    lower = torch.ones(n, n, dtype=torch.bool, device=mask.device).tril()
    own = torch.eye(n, dtype=torch.bool, device=mask.device)
    return lower & mask[:, None] | own


def text_mask(text: Tensor, offset: Tensor) -> Tensor:
    """Numbers and offsets (B N) of packed texts' tokens → (B N N): each token sees its own text up to itself."""
    return (text[:, :, None] == text[:, None]) & (offset[:, :, None] >= offset[:, None])


def attention_mask(past: Tensor, visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias (B 1 N T+M) of N tokens that see all real past positions (B T) and those ``visible`` (B N M)."""
    return additive_mask(torch.cat([past[:, None].expand(-1, visible.shape[1], -1), visible], dim=-1), dtype)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys that each query may look at, (B N T) → the bias added to attention scores, (B 1 N T)."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
