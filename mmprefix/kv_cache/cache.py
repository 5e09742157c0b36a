"""Key-value caches and attention masks for models of Transformers, made from a state without copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmprefix.kv_cache.state import Layer


def cache_over(layers: Sequence[Layer]) -> DynamicCache:
    """Cache that begins with ``layers`` (any number, not copied). A run extends the cache and leaves ``layers``."""
    cache = DynamicCache()
    cache.layers.extend(set_layer(DynamicLayer(), *layer) for layer in layers)
    return cache


def layers_of(cache: DynamicCache) -> tuple[Layer, ...]:
    """Keys and values (B H T K) of each layer of a cache, not copied."""
    return tuple((layer.keys, layer.values) for layer in cast(list[Any], cache.layers))


def set_layer(layer: DynamicLayer, keys: Tensor, values: Tensor) -> DynamicLayer:
    """Put keys and values (B H T K) into ``layer`` without a copy; return ``layer``."""
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    layer.keys, layer.values = keys, values
    return layer


def preallocated_cache(layers: Sequence[Layer], more: int) -> DynamicCache:
    """Cache that begins with a copy of ``layers`` and writes up to ``more`` positions after it in place."""
    cache = DynamicCache()
    cache.layers.extend(_PreallocatedLayer(keys, values, more) for keys, values in layers)
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep the inputs ``rows`` of a preallocated cache, in that order."""
    for layer in cache.layers:
        assert isinstance(layer, _PreallocatedLayer)
        layer.select(rows)


class _PreallocatedLayer(DynamicLayer):
    """Keys and values (B H T K) at the start of longer tensors (B H T+more K)."""

    def __init__(self, keys: Tensor, values: Tensor, more: int) -> None:
        super().__init__()
        self.length = keys.shape[2]
        self.buffers = [part.new_zeros(*part.shape[:2], self.length + more, part.shape[3]) for part in (keys, values)]
        for buffer, part in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, : self.length] = part
        self._expose()

    def _expose(self) -> Layer:
        """Let ``keys`` and ``values`` be the written part of the buffers; return both."""
        keys, values = (buffer[:, :, : self.length] for buffer in self.buffers)
        set_layer(self, keys, values)
        return keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + key_states.shape[2]
        for buffer, part in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = part
        return self._expose()

    def select(self, rows: Tensor) -> None:
        """Keep the inputs ``rows``."""
        self.buffers = [buffer[rows] for buffer in self.buffers]
        self._expose()


def causal_mask(mask: Tensor) -> Tensor:
    """Mask (B N) of real positions → (B N N): each query attends to real positions up to its own.

    Padding also attends to itself, so that no attention row is empty.
    """
    n = mask.shape[1]
    lower = torch.ones(n, n, dtype=torch.bool, device=mask.device).tril()
    own = torch.eye(n, dtype=torch.bool, device=mask.device)
    return lower & mask[:, None] | own


def text_mask(text: Tensor, offset: Tensor) -> Tensor:
    """Text numbers and offsets (B N) of packed tokens → (B N N): each token attends to its own text up to itself."""
    return (text[:, :, None] == text[:, None]) & (offset[:, :, None] >= offset[:, None])


def attention_mask(past: Tensor, visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention bias (B 1 N T+M) of N tokens that attend to real ``past`` (B T) and ``visible`` (B N M) positions."""
    return additive_mask(torch.cat([past[:, None].expand(-1, visible.shape[1], -1), visible], dim=-1), dtype)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys that each query attends to (B N T) → bias added to attention scores (B 1 N T)."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
