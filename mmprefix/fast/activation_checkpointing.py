"""Activation checkpointing for layers that write into a cache: of each layer only its input, keys and values are kept.

All else that its gradient needs is computed a second time on the way back (Chen et al. 2016,
https://arxiv.org/abs/1604.06174). Transformers' own form of it gives up the cache, which here is what a prefix is read
into.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from mmprefix.kv_cache import cache as caches
from mmprefix.kv_cache.state import Layer


def checkpoint_layers(layers: list[nn.Module]) -> None:
    """Has each of the ``layers``, which write into a cache in this order, forget what it can compute again."""
    for place, layer in enumerate(layers):
        layer.forward = CheckpointedLayer(layer, place)  # pyright: ignore[reportAttributeAccessIssue]


class CheckpointedLayer:
    """A layer's pass, whose inside is not kept where a gradient will be asked for."""

    def __init__(self, layer: nn.Module, place: int) -> None:
        self.layer, self.place = layer, place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives; its keys and values are in the cache that is among its arguments."""
        usual = type(self.layer).forward
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is None or not torch.is_grad_enabled():
            return usual(self.layer, *args, **kwargs)
        held, around = _layer(cache, self.place), copy_context()
        before = (held.keys, held.values) if held.is_initialized else None

        def inside() -> tuple[Any, Layer]:
            own = _with(cache, self.place, before)
            given = [own if value is cache else value for value in args]
            named = {name: own if value is cache else value for name, value in kwargs.items()}
            found = around.copy().run(usual, self.layer, *given, **named)
            after = _layer(own, self.place)
            return found, cast(Layer, (after.keys, after.values))

        found, (keys, values) = cast(Any, checkpoint(inside, use_reentrant=False))
        caches.set_layer(held, keys, values)
        return found


def _own(cache: Cache) -> Cache:
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def _layer(cache: Cache, place: int) -> DynamicLayer:
    """The part of a cache that the layer at ``place`` writes into; it is made where it is not there yet."""
    layers = _own(cache).layers
    layers.extend(DynamicLayer() for _ in range(place + 1 - len(layers)))
    return cast(DynamicLayer, layers[place])


def _with(cache: Cache, place: int, before: tuple[Tensor | None, Tensor | None] | None) -> Cache:
    """The same cache for one layer alone, holding what it held before."""
    fresh = DynamicLayer() if before is None else caches.set_layer(DynamicLayer(), *cast(Layer, before))
    own = DynamicCache()
    own.layers.extend([*_own(cache).layers[:place], fresh])
    return EncoderDecoderCache(own, cache.cross_attention_cache) if isinstance(cache, EncoderDecoderCache) else own
