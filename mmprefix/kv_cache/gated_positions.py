"""Gates of positions: factors and shifts of their hidden states in every layer, while they are run.

A layer reads x, and its attention's output o is added to it; a gated position goes on with (x + o) * g + a in place of
x + o. Hooks change o, so that the layer's own sum comes out so; they do nothing outside of ``gating``.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakSet

from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.kv_cache.side_attention import attention_modules


@dataclass
class _Gates:
    """Gates (B P 2 L E) of a run, what each layer reads, and the layers that met them."""

    values: Tensor
    hidden: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    met: set[int] = field(default_factory=set[int])


_gates: ContextVar[_Gates | None] = ContextVar("gates", default=None)
_hooked: WeakSet[nn.Module] = WeakSet()


def is_gating() -> bool:
    """True within ``gating`` with gates."""
    return _gates.get() is not None


@contextmanager
def gating(name: str, layers: list[nn.Module], gates: Tensor | None) -> Generator[None, None, None]:
    """Within this context the positions that ``layers`` of the model ``name`` run have ``gates`` (B P 2 L E).

    Raises InputError for layers that are no sum of what they read and of their attention.
    """
    if gates is None:
        yield
        return
    if not layers or gates.shape[3] != len(layers):
        raise InputError(f"decoder {name!r}: has no list of {gates.shape[3]} layers, so it takes no gates of positions")
    for number, layer in enumerate(layers):
        if layer not in _hooked:
            _hook(layer, number, name)
    run = _Gates(gates)
    token = _gates.set(run)
    try:
        yield
    finally:
        _gates.reset(token)
    if len(run.met) != len(layers):
        raise InputError(f"decoder {name!r}: its layers run past the hooks that gates of positions need")


def _hook(layer: nn.Module, number: int, name: str) -> None:
    """Hook a layer and its attention. Raises InputError for one whose norms stand behind the sums."""
    attention: Collection[Any] = attention_modules(layer)
    norms = [module for module in layer.children() if "norm" in type(module).__name__.lower()]
    before = getattr(layer, "do_layer_norm_before", True)
    if len(attention) != 1 or len(norms) != 2 or not before:
        raise InputError(
            f"decoder {name!r}: a {type(layer).__name__} is not a norm and attention, then a norm and a feed-forward "
            "network, each added to what it reads; gates of positions need that"
        )

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run = _gates.get()
        if run is not None:
            run.hidden[number] = args[0] if args else kwargs["hidden_states"]

    def change(module: nn.Module, args: Any, output: Any) -> Any:
        run = _gates.get()
        if run is None or number not in run.hidden:
            return None
        run.met.add(number)
        read = run.hidden[number]
        own = cast(Tensor, output[0] if isinstance(output, tuple) else output)
        factor, shift = run.values[:, :, :, number].to(own.dtype).unbind(2)  # (B P E)
        changed = (read + own) * factor + shift - read
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    layer.register_forward_pre_hook(keep, with_kwargs=True)
    next(iter(attention)).register_forward_hook(change)
    _hooked.add(layer)
