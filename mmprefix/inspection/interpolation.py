"""Captions of the prefixes on the straight line between two inputs' prefixes."""

from __future__ import annotations

from typing import Unpack, cast

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.inference.call_options import CallOptions, GenerateOverrides, decoding
from mmprefix.inference.inputs import Input
from mmprefix.inference.predictor import Predictor
from mmprefix.inspection.prefix_rows import PrefixRow, prefix_row
from mmprefix.inspection.words import refuse_memory
from mmprefix.types import AnyPrefix, DeepPrefix, MixedPrefix, Prefix, all_real


def interpolate(
    model: Predictor, a: Input, b: Input, steps: int = 7, **overrides: Unpack[GenerateOverrides]
) -> list[tuple[float, str]]:
    """``steps`` pairs of a weight from 0 (the prefix of ``a``) to 1 (that of ``b``), and the text of that mixture.

    Embeddings, and keys and values, are mixed position by position: (1 - weight) of ``a``, weight of ``b``. What lies
    between two prefixes was never trained; a text that changes at once tells of a border, not of a scale.
    ``overrides``: prompt, num_beams ...; see ``GenerateOverrides``. Raises InputError for prefixes of different
    lengths, inputs with different texts before the caption, fewer than 2 steps, and a decoder that reads frames too.
    """
    if steps < 2:
        raise InputError(f"steps {steps}: give a number from 2 on, both ends included")
    refuse_memory(model.model.decoder, "interpolate")
    decode = decoding(model.options, 1, overrides)
    call = cast(CallOptions, {name: overrides[name] for name in overrides if name in CallOptions.__annotations__})
    first, last = (prefix_row(model, value, call) for value in (a, b))
    if first.has_more or last.has_more:
        raise InputError(
            "interpolate: this model's prefix has parts that stand at no position (terms of attention, gates, updates "
            "of the text), which cannot be mixed; take a model of positions alone"
        )
    if first.lengths != last.lengths:
        raise InputError(
            f"interpolate: the prefixes have {sum(first.lengths)} and {sum(last.lengths)} positions of their kinds; "
            "give two inputs of one kind, and of one length where the prefix grows with it"
        )
    if first.prompt != last.prompt:
        raise InputError("interpolate: the two inputs have different texts before the caption; give one context")
    weights = [number / (steps - 1) for number in range(steps)]
    size, texts = call.get("batch_size", 16), list[str]()
    for start in range(0, steps, size):
        part = weights[start : start + size]
        with torch.inference_mode():
            state = model.model.decoder.prefill(_mixed(first, last, part))
            rows = model.model.decoder.generate(state, [first.prompt] * len(part), decode)
        texts += [row[0].text for row in rows]
    return list(zip(weights, texts, strict=True))


def _mixed(first: PrefixRow, last: PrefixRow, weights: list[float]) -> AnyPrefix:
    """Prefixes of one input each → one of as many as there are weights."""
    deep = soft = None
    if first.deep is not None and last.deep is not None:
        keys, values = (
            torch.cat([_between(getattr(first.deep, name), getattr(last.deep, name), w) for w in weights], dim=1)
            for name in ("keys", "values")
        )
        deep = DeepPrefix(keys, values, first.deep.mask.expand(len(weights), -1))
    if first.soft is not None and last.soft is not None:
        embeds = torch.cat([_between(first.soft.embeds, last.soft.embeds, weight) for weight in weights])
        soft = Prefix(embeds, all_real(embeds))
    if deep is not None and soft is not None:
        return MixedPrefix(deep, soft)
    return cast(AnyPrefix, deep or soft)


def _between(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Mixture that is ``a`` at 0 and ``b`` at 1, to the bit."""
    return a * (1 - weight) + b * weight
