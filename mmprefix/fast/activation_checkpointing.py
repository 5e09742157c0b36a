"""Activation checkpointing for layers that write into a cache: only input, keys and values of a layer are stored.

Claim: the other activations of a layer are recomputed in the backward pass (Chen et al. 2016,
https://arxiv.org/abs/1604.06174): losses and gradients have the same bits, with less memory and more time.
The checkpointing of Transformers turns the cache off, which holds the prefix here.
Measure: ``benchmarks/memory.py`` and ``benchmarks/train_step.py --extra-variants recompute``.
Off: the default; ``model.recompute: true`` (``Decoder.recompute_layers``) turns it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from mmprefix.kv_cache.cache import set_layer
from mmprefix.kv_cache.state import Layer


def checkpoint_layers(layers: Sequence[Any]) -> None:
    """Checkpoint each of the ``layers``, which write into a cache in this order."""
    for index, layer in enumerate(layers):
        layer.forward = CheckpointedLayer(layer, index)


class CheckpointedLayer:
    """``forward`` of layer number ``index``; with gradients enabled its activations are not stored."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        self.layer, self.index = layer, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the layer; its keys and values go into the cache among its arguments."""
        forward = type(self.layer).forward
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is None or not torch.is_grad_enabled():
            return forward(self.layer, *args, **kwargs)
        own_layer, context = _layer(cache, self.index), copy_context()
        before = _stored(own_layer)

        def recomputed() -> tuple[Any, Layer]:
            own = _single_layer_cache(cache, self.index, before)
            own_args = [own if value is cache else value for value in args]
            own_kwargs = {name: own if value is cache else value for name, value in kwargs.items()}
            output = context.copy().run(forward, self.layer, *own_args, **own_kwargs)
            after = _stored(_layer(own, self.index))
            if after is None:
                raise RuntimeError(f"layer {self.index} has put no keys and values into its cache")
            return output, after

        output, (keys, values) = cast(Any, checkpoint(recomputed, use_reentrant=False))
        set_layer(own_layer, keys, values)
        return output


def _own(cache: Cache) -> Cache:
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def _layer(cache: Cache, index: int) -> DynamicLayer:
    """Layer ``index`` of a cache, created if it is missing."""
    layers = _own(cache).layers
    layers.extend(DynamicLayer() for _ in range(index + 1 - len(layers)))
    layer = layers[index]
    assert isinstance(layer, DynamicLayer)
    return layer


def _stored(layer: DynamicLayer) -> Layer | None:
    """Keys and values of a layer; None before its first update."""
    return None if layer.keys is None or layer.values is None else (layer.keys, layer.values)


def _single_layer_cache(cache: Cache, index: int, before: Layer | None) -> Cache:
    """Cache for layer ``index`` alone, with the keys and values that it had ``before``."""
    fresh = DynamicLayer() if before is None else set_layer(DynamicLayer(), *before)
    own = DynamicCache()
    own.layers.extend([*_own(cache).layers[:index], fresh])
    return EncoderDecoderCache(own, cache.cross_attention_cache) if isinstance(cache, EncoderDecoderCache) else own
