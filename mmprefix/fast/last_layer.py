"""Last layer at one position: in a prefill its attention and feed-forward are computed at the last position only.

Claim: a state holds the keys and values of each layer and the hidden state at the last position. Everything else that
the last layer computes is unused. Results and gradients are equal up to rounding.
Measure: ``tests/fast/test_last_layer.py`` counts the operations that are saved; ``benchmarks/train_step.py`` times a
step, with and without.
Off: ``MMPREFIX_FAST`` without ``last_layer``.

The layer is run twice. An exception ends the first run, on all positions, as soon as keys and values are in the cache;
the second run, on the last positions alone, reads them there. Arguments that belong to positions are recognized by
shape and name (see ``_narrow``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmprefix.kv_cache.cache import cache_over, set_layer
from mmprefix.kv_cache.state import Layer

_selected: ContextVar[tuple[Tensor, int] | None] = ContextVar("selected", default=None)  # positions (B,) of N, and N


class _KeysValuesStored(Exception):  # noqa: N818 (no error: it ends a run)
    """Ends a layer's run as soon as its keys and values are in the cache."""


class _CaptureKeysValues(DynamicLayer):
    """Last layer of a cache: its first update stores keys and values, later ones only return them."""

    stored: Layer | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.stored is None:
            self.stored = super().update(key_states, value_states, *args, **kwargs)
            raise _KeysValuesStored
        return self.stored


def cache_for(layers: tuple[Layer, ...], count: int) -> DynamicCache:
    """Cache of ``count`` layers that begins with ``layers`` (none, or all), for one run within ``only_at``."""
    cache = cache_over(layers)
    cache.layers.extend(DynamicLayer() for _ in range(count - len(layers)))
    cache.layers[-1] = set_layer(_CaptureKeysValues(), *layers[-1]) if layers else _CaptureKeysValues()
    return cache


@contextmanager
def only_at(selected: tuple[Tensor, int] | None) -> Iterator[None]:
    """Within this context the last layer runs at ``positions`` (B,) of N only; its output is broadcast to all N.

    ``selected`` is (positions, N); None: the layer runs at all positions.
    """
    token = _selected.set(selected)
    try:
        yield
    finally:
        _selected.reset(token)


def install(model: nn.Module, count: int) -> bool:
    """Hook the last of the ``count`` layers of ``model``; False if it has no list of them."""
    layers = decoder_layers(model, count)
    if layers:
        layers[-1].register_forward_pre_hook(_narrow, with_kwargs=True)
        layers[-1].register_forward_hook(_widen)
    return bool(layers)


def decoder_layers(model: nn.Module, count: int) -> list[nn.Module]:
    """Layers of a model that has a list of ``count`` of them; empty for others."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def _narrow(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Store the keys and values of all positions, then reduce the arguments to the selected positions."""
    selected = _selected.get()
    if selected is None:
        return None
    positions, count = selected
    with only_at(None), suppress(_KeysValuesStored):
        layer(*args, **kwargs)

    def gather(value: Tensor, dim: int) -> Tensor:
        shape = [len(positions), *value.shape[1:]]
        index = positions.view(-1, *[1] * (value.dim() - 1)).expand(*shape[:dim], 1, *shape[dim + 1 :])
        return value.expand(shape).gather(dim, index)

    def narrowed(value: Any, name: str = "") -> Any:
        """Attention masks (B 1 N T), position ids (B N) and rotary embeddings (B N K) at the selected positions."""
        if isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] == count:
            return gather(value, 2)
        if name in ("position_ids", "position_embeddings") and isinstance(value, Tensor):
            return gather(value, 1)
        if name == "position_embeddings" and value is not None:
            return tuple(gather(part, 1) for part in value)
        return value

    narrowed_kwargs = {name: narrowed(value, name) for name, value in kwargs.items()}
    return (gather(args[0], 1), *map(narrowed, args[1:])), narrowed_kwargs


def _widen(layer: nn.Module, args: Any, output: Any) -> Any:
    """Broadcast the output at one position to all N."""
    selected = _selected.get()
    if selected is None:
        return None
    if isinstance(output, tuple):
        return output[0].expand(-1, selected[1], -1), *output[1:]
    return output.expand(-1, selected[1], -1)
