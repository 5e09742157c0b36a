"""Compaction in closed form: the keys and values of a long text become a few positions, without training.

Attention Matching (https://arxiv.org/abs/2602.16284) without its bias. For each layer and key-value head the keys C1
(P K) are those of the N keys that get most attention, and the values C2 (P K) are least squares of

    softmax(q C1' / sqrt(K)) C2  =  softmax(q K' / sqrt(K)) V

over the queries q of the text itself. The first position, which takes the attention that goes nowhere, is always kept;
where keys and values of something else stand before the prefix, they take its part on both sides of the equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.kv_cache.recorded_attention import recorded_attention
from mmprefix.kv_cache.side_terms import AttentionCall, SideTerm
from mmprefix.types import DeepPrefix

Mass = Literal["mean", "max", "rms"]
_RIDGE = 1e-3  # of the mean square of a column of weights, where least squares alone give wild values
_WILD = 10.0  # times the largest value of the text


def compact(
    decoder: ComposedDecoder,
    context: str,
    positions: int = 32,
    *,
    mass: Mass = "mean",
    read_twice: bool = True,
    front: DeepPrefix | None = None,
    terms: Sequence[SideTerm] = (),
) -> DeepPrefix:
    """Keys and values (L 1 H P K) float32 that stand for the text ``context`` (N tokens) in the cache of ``decoder``.

    Keys that carry rotary positions get those at which they stand right before the position where the next text begins:
    distances are those behind the whole context. Learned positions stay those of the context.

    Args:
        decoder: a causal language model.
        context: a text of at least P tokens.
        positions: P, of the prefix.
        mass: how the attention that a key gets is summed over the queries.
        read_twice: take the queries of a second reading of the text behind the first, which see all of it as a later
            text does; False: those of the text itself, over all keys.
        front: keys and values (L 1 H F K) that will stand before the prefix; None: nothing.
        terms: what will stand beside the cache. Queries, keys and values are read with them; the equation is that of
            the cache alone, and they are added to both of its sides.

    Raises InputError for a shorter text, for one that the decoder has no positions for, and for a decoder whose
    attention is not that of Transformers' interface.
    """
    model = decoder.language_model
    model.require_deep(decoder.heads)
    ids = decoder.codec.marked_ids(context)
    before, most = (0, len(ids)) if front is None else (front.mask.shape[1], len(ids) - 1)
    if not 0 < positions <= most:
        raise InputError(f"positions {positions}: the context has {most} tokens; give a number from 1 up to that")
    first = before + positions - len(ids) if model.rotates_keys else 0
    with torch.enable_grad(), recorded_attention(model.stack) as calls:
        model.key_values(ids * (1 + read_twice), first, terms)
    if len(calls) != decoder.layers:
        raise InputError(f"decoder {model.name!r}: its attention hides its queries; start from a text instead")
    fronts = [None] * len(calls) if front is None else list(zip(front.keys[:, 0], front.values[:, 0], strict=True))
    layers = [
        _compact_layer(call, len(ids), positions, mass, front=own) for call, own in zip(calls, fronts, strict=True)
    ]
    keys, values = (torch.stack(parts)[:, None].to(model.device) for parts in zip(*layers, strict=True))
    return DeepPrefix(keys, values, torch.ones(1, positions, dtype=torch.bool, device=model.device))


def _compact_layer(
    call: AttentionCall, count: int, positions: int, mass: Mass, *, front: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Keys and values (H P K) of one layer whose last ``count`` queries and first ``count`` keys are the text's.

    ``front``: keys and values (H F K) that take the part of the text's first.
    """
    keys, values = (part[0, :, :count].detach().float().cpu() for part in (call.keys, call.values))
    before = 0
    if front is not None:
        before = front[0].shape[1]
        pairs = zip(front, (keys, values), strict=True)
        keys, values = (torch.cat([one.detach().float().cpu(), own[:, 1:]], dim=1) for one, own in pairs)
    queries = call.queries[0, :, -count:].detach().float().cpu()
    queries = queries.reshape(len(keys), -1, queries.shape[-1])  # those of a group read the same keys
    return compact_heads(call.scores(queries, keys), keys, values, positions, mass=mass, front=before)


def compact_heads(
    scores: Tensor, keys: Tensor, values: Tensor, positions: int, *, mass: Mass = "mean", front: int = 0
) -> tuple[Tensor, Tensor]:
    """Scores of R queries (H R N), keys and values (H N K) → P kept keys and fitted values (H P K), float32.

    Kept keys stay in the order of the text. The first ``front`` of the N stay where they are, beside those.
    """
    weights = scores.softmax(-1)
    total = {"mean": weights.mean(1), "max": weights.amax(1), "rms": weights.square().mean(1)}[mass].clone()
    total[:, :front] = -torch.inf
    if not front:
        total[:, 0] = torch.inf
    kept = total.topk(positions).indices.sort().values  # (H P)
    chosen = scores.gather(2, kept[:, None].expand(-1, scores.shape[1], -1))
    beside, few = torch.cat([scores[:, :, :front], chosen], dim=2).softmax(-1).split([front, positions], dim=2)
    target = weights @ values - beside @ values[:, :front]
    fitted = fit_values(few, target, _WILD * values.abs().amax((1, 2)))
    return keys.gather(1, kept[..., None].expand(-1, -1, keys.shape[2])), fitted


def fit_values(weights: Tensor, target: Tensor, limit: Tensor) -> Tensor:
    """Least squares: values (H P K) such that ``weights`` (H R P) times them are ``target`` (H R K).

    Heads that get a value beyond their ``limit`` (H) are solved again with a ridge.
    """
    exact = torch.linalg.lstsq(weights, target, driver="gelsy").solution
    gram = weights.transpose(1, 2) @ weights
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    system = gram + ridge[:, None, None] * torch.eye(gram.shape[1])
    careful = torch.linalg.solve(system, weights.transpose(1, 2) @ target)
    fits = exact.abs().amax((1, 2)) <= limit  # False for NaN
    return torch.where(fits[:, None, None], exact, careful)
