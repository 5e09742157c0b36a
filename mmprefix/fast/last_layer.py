"""The last layer of a decoder, run where somebody reads what it finds: behind the last position of a trunk.

Of a trunk two things are kept: the keys and values of all its positions in each layer, and the hidden state after its
last position. In the last layer, attention and feed-forward of all other positions would be computed for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, cast

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmprefix.kv_cache import cache as caches
from mmprefix.kv_cache.state import Layer

_wanted: ContextVar[tuple[Tensor, int] | None] = ContextVar("wanted", default=None)  # positions (B) of N, and N


class _KeysValuesStored(Exception):
    """Ends a layer's run as soon as its keys and values are in the cache."""


class _CaptureKeysValues(DynamicLayer):
    """The last layer's part of a cache: once it has taken new keys and values, it gives them and takes no more."""

    taken = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.taken:
            super().update(key_states, value_states, *args, **kwargs)
            self.taken = True
            raise _KeysValuesStored
        return cast(Tensor, self.keys), cast(Tensor, self.values)


def cache_for(layers: tuple[Layer, ...], count: int) -> DynamicCache:
    """A cache of ``count`` layers that begins with ``layers`` (none, or all), for one run within ``reading``."""
    cache = caches.cache_over(layers)
    cache.layers.extend(DynamicLayer() for _ in range(count - len(layers)))
    cache.layers[-1] = caches.set_layer(_CaptureKeysValues(), *layers[-1]) if layers else _CaptureKeysValues()
    return cache


@contextmanager
def only_at(wanted: tuple[Tensor, int] | None) -> Iterator[None]:
    """Given positions (B) of N, and N: what a hooked model says of all N is, within, what it finds there alone."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def install(model: nn.Module, count: int) -> bool:
    """Prepares a model of ``count`` layers for ``reading``; False where its layers are not to be found."""
    layers = decoder_layers(model, count)
    if layers:
        layers[-1].register_forward_pre_hook(_narrow, with_kwargs=True)
        layers[-1].register_forward_hook(_widen)
    return bool(layers)


def decoder_layers(model: nn.Module, count: int) -> list[nn.Module]:
    """The ``count`` layers of a model; none where they are not to be found."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def _narrow(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    wanted = _wanted.get()
    if wanted is None:
        return None
    places, count = wanted
    with only_at(None), suppress(_KeysValuesStored):  # all N positions, up to their keys and values
        layer(*args, **kwargs)

    def at(value: Tensor, dim: int) -> Tensor:
        shape = [len(places), *value.shape[1:]]
        index = places.view(-1, *[1] * (value.dim() - 1)).expand(*shape[:dim], 1, *shape[dim + 1 :])
        return value.expand(shape).gather(dim, index)

    def of(value: Any, name: str = "") -> Any:
        """Masks (B 1 N T), and what tells the places of the N."""
        if isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] == count:
            return at(value, 2)
        if name == "position_ids" and isinstance(value, Tensor):
            return at(value, 1)
        if name == "position_embeddings" and value is not None:
            return tuple(at(part, 1) for part in value)
        return value

    return (at(args[0], 1), *map(of, args[1:])), {name: of(value, name) for name, value in kwargs.items()}


def _widen(layer: nn.Module, args: Any, found: Any) -> Any:
    wanted = _wanted.get()
    if wanted is None:
        return None
    if isinstance(found, tuple):
        return found[0].expand(-1, wanted[1], -1), *found[1:]
    return found.expand(-1, wanted[1], -1)
