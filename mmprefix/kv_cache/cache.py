"""Transformers' key-value cache over keys and values that are there already: they are not copied to be put into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmprefix.kv_cache.state import Layer


def cache_over(layers: Sequence[Layer]) -> DynamicCache:
    """A cache that begins with ``layers``; none: an empty one."""
    cache = DynamicCache()
    cache.layers.extend(set_layer(DynamicLayer(), *layer) for layer in layers)
    return cache


def set_layer(layer: DynamicLayer, keys: Tensor, values: Tensor) -> DynamicLayer:
    """A layer that holds these keys and values themselves."""
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    layer.keys, layer.values = keys, values
    return layer


def preallocated_cache(layers: Sequence[Layer], more: int) -> DynamicCache:
    """A cache that begins with a copy of ``layers``, with room for ``more`` positions that is written to in place."""
    cache = DynamicCache()
    cache.layers.extend(_PreallocatedLayer(keys, values, more) for keys, values in layers)
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Goes on with some of the inputs of a roomy cache."""
    for layer in cache.layers:
        cast(_PreallocatedLayer, layer).select(rows)


class _PreallocatedLayer(DynamicLayer):
    """Keys and values (B H T K) at the beginning of tensors that are longer."""

    def __init__(self, keys: Tensor, values: Tensor, more: int) -> None:
        super().__init__()
        self.length = keys.shape[2]
        shape = (*keys.shape[:2], self.length + more, keys.shape[3])
        self.spaces = [part.new_empty(shape) for part in (keys, values)]
        for space, part in zip(self.spaces, (keys, values), strict=True):
            space[:, :, : self.length] = part
        self._show()

    def _show(self) -> None:
        keys, values = (space[:, :, : self.length] for space in self.spaces)
        set_layer(self, keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        begin, self.length = self.length, self.length + key_states.shape[2]
        for space, part in zip(self.spaces, (key_states, value_states), strict=True):
            space[:, :, begin : self.length] = part
        self._show()
        return cast(Tensor, self.keys), cast(Tensor, self.values)

    def select(self, rows: Tensor) -> None:
        """Goes on with some of the inputs."""
        self.spaces = [space[rows] for space in self.spaces]
        self._show()
