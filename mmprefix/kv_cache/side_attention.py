"""Terms of attention that stand in no key-value cache, through the attention interface of Transformers.

A layer's attention runs as the model has it. Then each ``SideTerm`` of the run changes the result: a ``JointTerm``
takes part in the softmax (by the logarithm of its sum), an ``AddedTerm`` is added beside it. Fused layers
(``mmprefix.fast.fused_layer``) do not pass the interface; they are not taken within ``attending``.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmprefix.errors import InputError
from mmprefix.kv_cache.side_terms import AddedTerm, AttentionCall, JointTerm, SideTerm

_WATCHED: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models whose attention modules keep what they read."""
_START = "mmprefix_side_"  # before the name of the attention that a model had
_OWN = "mmprefix_"  # names of attention functions of this library, which all meet the terms
Attend = Callable[..., tuple[Tensor, Any]]


@dataclass
class _Run:
    """Terms of a run, what it excludes, and what its layers have shown so far."""

    terms: Sequence[SideTerm]
    excluded: Collection[nn.Module]
    hidden: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    seen: set[int] = field(default_factory=set[int])


_run: ContextVar[_Run | None] = ContextVar("side_run", default=None)


def is_attending() -> bool:
    """True within ``attending``: a layer has to pass the attention interface."""
    return _run.get() is not None


@contextmanager
def attending(
    stack: Any, terms: Sequence[SideTerm], excluded: Collection[nn.Module] = ()
) -> Generator[set[int], None, None]:
    """Within this context the layers of ``stack``, a model of Transformers, meet the ``terms``.

    ``excluded``: attention modules that do not (cross-attention). Yields the set of the layers that met them, which
    grows as the model runs. Runs of other threads, and those without terms, are as they were.
    """
    if not terms:
        yield set()
        return
    _install(stack)
    run = _Run(terms, excluded)
    token = _run.set(run)
    try:
        yield run.seen
    finally:
        _run.reset(token)


def _install(stack: Any) -> None:
    """Let the attention of ``stack`` pass ``_attend`` from now on; nothing changes for runs without terms."""
    config = stack.config
    name: str = config._attn_implementation or "eager"
    if stack not in _WATCHED:
        _WATCHED.add(stack)
        for module in attention_modules(stack):
            module.register_forward_pre_hook(_keep_hidden, with_kwargs=True)
    if name.startswith(_OWN):
        return
    side = _START + name
    if side not in ALL_ATTENTION_FUNCTIONS:
        cast(Any, AttentionInterface).register(side, _attend_over(name))
        cast(Any, AttentionMaskInterface).register(side, _no_mask)
    config._attn_implementation = side


def attention_modules(stack: nn.Module) -> list[Any]:
    """Attention modules of a model: those that know the number of their layer and have projections."""
    known = ("k_proj", "c_attn", "query_key_value", "qkv_proj")
    modules = (module for module in stack.modules() if isinstance(getattr(module, "layer_idx", None), int))
    return [module for module in modules if any(hasattr(module, name) for name in known)]


def project_tokens(attention: Any, vectors: Tensor, heads: int, name: str) -> tuple[Tensor, Tensor]:
    """Vectors (B P E) → keys and values (B H P K) by the projections of an attention module, without rotary positions.

    Raises InputError, for the model ``name``, for a module whose projections are not known.
    """
    if hasattr(attention, "k_proj"):
        keys, values = attention.k_proj(vectors), attention.v_proj(vectors)
    elif hasattr(attention, "c_attn"):
        width = attention.c_proj.weight.shape[0]
        keys, values = attention.c_attn(vectors)[..., width:].chunk(2, dim=-1)
    else:
        raise InputError(
            f"{name}: the key and value projections of its layers are not known, so no vectors pass through them; use "
            "a deep prefix"
        )
    return _split_keys(attention, keys, heads), values.unflatten(-1, (heads, -1)).transpose(1, 2)


def _split_keys(attention: Any, keys: Tensor, heads: int) -> Tensor:
    """Keys (B P H*K) → (B H P K), normalised as the module does: all of them (OLMo 2), or each head's."""
    norm: Any = getattr(attention, "k_norm", None)
    if norm is not None and tuple(norm.weight.shape) == keys.shape[-1:]:
        keys, norm = norm(keys), None
    split = keys.unflatten(-1, (heads, -1))
    split = (split if norm is None else norm(split)).transpose(1, 2)
    later: Any = getattr(attention, "k_layernorm", None)  # Phi, StableLM
    return split if later is None else later(split)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Masks are made by ``mmprefix.kv_cache.cache`` and given to each run."""


def _keep_hidden(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Remember what an attention module reads, for terms that depend on it."""
    run = _run.get()
    if run is not None and module not in run.excluded:
        run.hidden[module.layer_idx] = args[0] if args else kwargs["hidden_states"]


def _attend_over(name: str) -> Attend:
    """Attention function that runs the one called ``name``, then the terms of the run."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *masks: Any, **options: Any) -> Any:
        own: Attend = (
            cast(Any, sys.modules[type(module).__module__]).eager_attention_forward
            if name == "eager"  # each family has its own
            else cast(Any, ALL_ATTENTION_FUNCTIONS)[name]
        )
        output, weights = own(module, query, key, value, *masks, **options)
        if not is_attending():
            return output, weights
        return with_terms(module, call_of(query, key, value, *masks, **options), output), weights

    return attend


def call_of(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any) -> AttentionCall:
    """Arguments of Transformers' attention interface as a call."""
    scale = options.get("scaling")
    scale, sinks = query.shape[-1] ** -0.5 if scale is None else scale, options.get("s_aux")
    return AttentionCall(query, key, value, scale, options.get("softcap"), attention_mask, sinks=sinks)


def plain_attention(call: AttentionCall) -> Tensor:
    """Attention (B N H' K) of a call, step by step."""
    weights = torch.softmax(call.masked_scores().float(), dim=-1).to(call.queries.dtype)
    return (weights @ call.for_queries(call.values)).transpose(1, 2).contiguous()


def with_terms(module: Any, call: AttentionCall, output: Tensor) -> Tensor:
    """Attention (B N H' K) of a layer → the same with the terms of the run."""
    run = _run.get()
    if run is None or module in run.excluded:
        return output
    layer: int = module.layer_idx
    run.seen.add(layer)
    call = replace(call, layer=layer, hidden=run.hidden.get(layer))
    result = output.transpose(1, 2)
    joint = [term for term in run.terms if isinstance(term, JointTerm)]
    if joint:
        if call.sinks is not None:
            raise InputError(
                "a layer's softmax has sinks of its own (GPT-OSS), which this kind of prefix does not know"
            )
        log_sum = call.masked_scores().float().logsumexp(-1)
        for term in joint:
            result, log_sum = _joined(term, call, result, log_sum)
    for term in run.terms:
        added = term.added(call) if isinstance(term, AddedTerm) else None
        if added is not None:
            result = _where_active(term, result + added.to(result.dtype), result)
    return result.transpose(1, 2).contiguous()


def _joined(term: JointTerm, call: AttentionCall, result: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (B H' N K) and the log of its sum of weights (B H' N) → both with ``term`` in the softmax.

    A term of zeros changes no bit of the attention.
    """
    mass = term.mass(call)
    if mass is None:
        return result, log_sum
    numerator, denominator, log_factor = mass
    highest = torch.where(denominator > 0, torch.maximum(log_sum, log_factor), log_sum).detach()
    own, other = (log_sum - highest).exp(), (log_factor - highest).exp()
    total = own + denominator * other
    joined = (result.float() * own[..., None] + numerator * other[..., None]) / total[..., None]
    return (
        _where_active(term, joined.to(result.dtype), result),
        _where_active(term, highest + total.log(), log_sum),
    )


def _where_active(term: SideTerm, new: Tensor, old: Tensor) -> Tensor:
    if term.active is None:
        return new
    return torch.where(term.active.view(-1, *[1] * (new.dim() - 1)), new, old)
