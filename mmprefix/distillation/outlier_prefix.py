"""PrefixQuant: the tokens that make a decoder's activations loud stand before every text, and no text is loud then.

PrefixQuant: Eliminating Outliers by Prefixed Tokens for Large Language Models Quantization (Chen et al.),
https://arxiv.org/abs/2410.05265. A model of LLaMA's kind writes huge numbers at the first position and at a few
tokens wherever they stand; with them in a prefix whose keys and values are kept, one scale for all activations of a
matrix, fixed beforehand, loses far less. Measured on SmolLM2-135M (benchmarks.studies.serving.static_quantization): the
largest activation falls from 2,883 to 86, and perplexity at 8 bits from 110.1 to 72.8, where unrounded it is 60.5.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.types import AnyPrefix, DeepPrefix, Prefix

LAST = ("down_proj", "fc2", "mlp.c_proj")  # last matrix of a layer's feed-forward network
Hook = Callable[[str, Tensor], Tensor | None]


@contextmanager
def watched(decoder: ComposedDecoder, hook: Hook) -> Generator[None, None, None]:
    """Within this context ``hook`` gets the name and the input of each matrix in the layers, and may replace it.

    Gradients are enabled, so that no fused layer goes round the matrices; a frozen model builds no graph by that.
    """
    handles: list[Any] = []

    def before(name: str) -> Any:
        return lambda _, inputs: None if (new := hook(name, inputs[0])) is None else (new, *inputs[1:])

    try:
        for number, layer in enumerate(decoder.language_model.decoder_layers):
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear | Conv1D):
                    handles.append(module.register_forward_pre_hook(before(f"{number}.{name}")))
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def nll(decoder: ComposedDecoder, prefix: AnyPrefix | None, ids: Sequence[int]) -> float:
    """Negative log-likelihood a token of a text behind ``prefix``; its first token is read, not scored.

    Without a prefix the token that begins a text stands before it.
    """
    before = decoder.codec.prompt_ids("", True) if prefix is None else []
    state = decoder.prefill(Prefix.empty(1, decoder.width, decoder.language_model.device) if prefix is None else prefix)
    state = decoder.append_ids(state, [[*before, ids[0]]])
    return float(decoder.token_loss(state, [[list(ids[1:])]]).mean().detach())


def outlier_ids(decoder: ComposedDecoder, texts: Sequence[Sequence[int]], eta: float = 64.0) -> list[int]:
    """Tokens of the prefix: the o most frequent outliers of ``texts``, then the token that begins a text.

    A token is an outlier where the greatest number that enters a layer's last matrix there is over ``eta`` times the
    median of those of all tokens; o is the mean count of them in a text, of the layer with the most, rounded up.
    """
    counts, ids = Counter[str](), Counter[int]()
    begin = decoder.codec.prompt_ids("", True)
    for text in texts:
        whole = [*begin, *text]

        def look(name: str, values: Tensor, whole: list[int] = whole) -> None:
            if name.endswith(LAST) and values.shape[1] == len(whole):
                loudest = values[0].abs().amax(-1)
                loud = (loudest > eta * loudest.median()).nonzero()[:, 0].tolist()
                counts[name] += len(loud)
                ids.update(whole[place] for place in loud)

        with watched(decoder, look):
            decoder.language_model.key_values(whole)
    most = math.ceil(max(counts.values(), default=0) / max(1, len(texts)))
    return [*(token for token, _ in ids.most_common() if token not in begin)][:most] + begin


def outlier_prefix(decoder: ComposedDecoder, texts: Sequence[Sequence[int]], eta: float = 64.0) -> DeepPrefix:
    """Keys and values (L 1 H P K) of ``outlier_ids``. Raises InputError where there is nothing to put in it."""
    if not (ids := outlier_ids(decoder, texts, eta)):
        raise InputError(f"outlier_prefix: no token is louder than eta={eta} times the others; a lower eta finds some")
    with torch.no_grad():
        return decoder.language_model.key_values(ids)
