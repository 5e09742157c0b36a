"""Self-check of a language model: packed texts, ragged prefixes and beams against the model's own forward pass.

A model of an unknown family could count positions by the cache, look back through a window of its own, or keep no
keys and values: the score of a text would depend on what else is in the batch. So each configuration is checked when it
is first loaded, on a tiny twin (``tiny_twin``) in a tenth of a second, and a model that differs is refused.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mmprefix.decoders.base import TextLoss
from mmprefix.decoders.model_config import SPANS, text_config
from mmprefix.decoders.tiny_twin import build_twin
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.strategies import Hypothesis
from mmprefix.kv_cache.state import Memory, State

TOLERANCE = 2e-3  # nats of the log-probability of a text of a few tokens, in float32
TOLERANCE_HALF = 0.5  # of a model in half precision that has no twin
PREFIXES = [[11, 12, 13, 14, 15], [21, 22]]  # tokens whose embeddings are the prefix
PROMPTS = [[31], [32, 33, 34]]
TEXTS = [[[41, 42, 43, 44, 45, 46], [51, 52, 53]], [[61, 62, 63, 64]]]
BEAMS = GenerateOptions(max_new_tokens=4, num_beams=2)
FRAMES = (4, 2)  # frames of each input for cross-attention
WORKING = "GPT-2, OPT, LLaMA, Mistral, Qwen, Gemma and many others work: docs/decoders.md"

_verdicts: dict[str, Verdict] = {}  # by configuration


@dataclass(frozen=True)
class Verdict:
    """``problem``: why a model cannot be used ("": it can). ``deep``: it can read a deep prefix."""

    problem: str = ""
    deep: bool = True


class CheckedDecoder(Protocol):
    """Part of a decoder that is checked; see ``ComposedDecoder``."""

    language_model: Any
    layers: int
    heads: int
    head_width: int

    def extend(self, state: State, embeds: Tensor, mask: Tensor) -> State:
        """Run more positions."""
        ...

    def append_ids(self, state: State, ids: list[list[int]]) -> State:
        """Append tokens to a state."""
        ...

    def token_loss(self, state: State, ids: list[list[list[int]]]) -> TextLoss:
        """Loss of texts as token ids."""
        ...

    def search_tokens(self, state: State, options: GenerateOptions, stops: Tensor) -> list[list[Hypothesis]]:
        """Search hypotheses as token ids."""
        ...


def require_own_scores(decoder: CheckedDecoder, twin_of: Callable[[Any], CheckedDecoder]) -> bool:
    """Check a decoder's model, once for each configuration → True if it can read a deep prefix.

    ``twin_of`` makes a decoder over another model of the same class. Raises InputError for a model whose scores are not
    those of its own forward pass.
    """
    lm, name = decoder.language_model.lm, decoder.language_model.name
    if next(lm.parameters()).is_meta:  # a dry run: there are sizes and no weights
        return True
    key = _key(lm)
    if key not in _verdicts:
        _verdicts[key] = examine(decoder, twin_of)
    verdict = _verdicts[key]
    if verdict.problem:
        raise InputError(f"decoder {name!r}: a {lm.config.model_type!r} model {verdict.problem}; {WORKING}")
    return verdict.deep


def examine(decoder: CheckedDecoder, twin_of: Callable[[Any], CheckedDecoder]) -> Verdict:
    """Compare the twin of a decoder's model with the twin's own forward pass; the model itself if it has no twin."""
    lm = decoder.language_model.lm
    try:
        twin = build_twin(lm)
    except Exception:  # a configuration that cannot be made small; classes raise what they like
        twin = None
    try:
        if twin is None:
            state, difference = compare(decoder, lm)
        else:
            reference = deepcopy(twin)  # without hooks and patches
            decoder = twin_of(twin)
            state, difference = compare(decoder, reference)
    except Exception as error:  # of the model's own code
        return Verdict(_reason(lm, str(error).strip().splitlines()[:1]))
    half = twin is None and next(lm.parameters()).dtype != torch.float32
    if not difference <= (TOLERANCE_HALF if half else TOLERANCE):
        return Verdict(_reason(lm, [f"a score would depend on the batch, by {difference:.2g} nats"]))
    shape = (len(PREFIXES), decoder.heads, state.mask.shape[1], decoder.head_width)
    same = all(keys.shape == values.shape == shape for keys, values in state.cache)
    return Verdict(deep=same and len(state.cache) == decoder.layers)


@torch.no_grad()
def compare(decoder: CheckedDecoder, reference: Any) -> tuple[State, float]:
    """State of two inputs, and the greatest difference, in nats, of a text's log-probability to ``reference``'s own.

    The prefix of the first input is no embedding of a token, that of the second is.
    """
    model = decoder.language_model
    before = [torch.tensor([ids]) for ids in PREFIXES]
    embeds = [model.embed(before[0]) + model.embed(before[0].flip(1)), model.embed(before[1])]
    frames = _frames(model)
    mask = torch.arange(len(PREFIXES[0])) < torch.tensor([[len(ids)] for ids in PREFIXES])
    padded = torch.cat([embeds[0], torch.nn.functional.pad(embeds[1], (0, 0, 0, int((~mask).sum())), value=7.0)])
    state = State((), mask[:, :0], None, _memory(model, frames))
    state = decoder.append_ids(decoder.extend(state, padded, mask), PROMPTS)
    scores: list[float] = (-decoder.token_loss(state, TEXTS).nll).tolist()
    texts = [(b, ids) for b, own in enumerate(TEXTS) for ids in own]
    for b, group in enumerate(decoder.search_tokens(state, BEAMS, torch.tensor([0]))):
        texts.append((b, group[0][0]))
        scores.append(group[0][1] * len(group[0][0]))
    difference = 0.0
    for (b, ids), score in zip(texts, scores, strict=True):
        tokens = torch.tensor([PREFIXES[b] + PROMPTS[b] + ids])
        parts = [embeds[b], model.embed(tokens[:, len(PREFIXES[b]) :])]
        logits = own_logits(reference, None if b == 0 else tokens, torch.cat(parts, dim=1), frames[b])
        rows = torch.arange(tokens.shape[1] - len(ids) - 1, tokens.shape[1] - 1)
        own = float(logits.float().log_softmax(-1)[rows, torch.tensor(ids)].sum())
        difference = max(difference, abs(score - own))
    return state, difference


def own_logits(lm: Any, ids: Tensor | None, embeds: Tensor, frames: Tensor | None) -> Tensor:
    """Logits (N V) of a plain forward pass over token ids (1 N), or embeddings (1 N E) if there are none."""
    start = "decoder_" if lm.config.is_encoder_decoder and frames is not None else ""
    inputs: dict[str, Any] = {f"{start}inputs_embeds": embeds} if ids is None else {f"{start}input_ids": ids}
    if frames is not None:
        inputs["encoder_outputs"] = (frames[None],)
    return lm(**inputs, use_cache=False).logits[0]


def _frames(model: Any) -> list[Any]:
    """Frames (T D) of each input for cross-attention; None for a model without."""
    if model.memory_width is None:
        return [None for _ in FRAMES]
    random = torch.Generator().manual_seed(0)
    return [torch.randn(length, model.memory_width, generator=random) for length in FRAMES]


def _memory(model: Any, frames: list[Any]) -> Memory | None:
    if model.memory_width is None:
        return None
    padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
    return model.project(padded, torch.arange(max(FRAMES)) < torch.tensor(FRAMES)[:, None])


def _reason(lm: Any, detail: list[str]) -> str:
    """Why a model cannot be used, in words; ``detail`` is what was measured or raised."""
    config = text_config(lm)
    kinds = [getattr(config, name, None) or [] for name in ("layer_types", "layers_block_type", "block_types")]
    others = sorted({str(kind) for own in kinds for kind in own} - SPANS)
    arguments = inspect.signature(type(lm).forward).parameters
    if "past_key_values" not in arguments:
        return "keeps no key-value cache, which a prefix is the start of"
    if others:
        return f"has layers without keys and values of all positions ({', '.join(others)})"
    positions = [*arguments, *inspect.signature(lm.base_model.forward).parameters]
    causal = not lm.config.is_encoder_decoder
    if causal and "position_ids" not in positions:
        return (
            "takes no position ids: it counts positions or distances (alibi) along a cache that texts and padding share"
        )
    if causal and getattr(config, "is_decoder", None) is False:
        return "reads both ways, for its configuration says is_decoder: false"
    return f"does not give its own scores over a shared cache [{', '.join(detail)}]"


def _key(lm: Any) -> str:
    """Class and configuration of a model, without names of files and versions."""
    config = {name: value for name, value in lm.config.to_dict().items() if name not in ("_name_or_path", "dtype")}
    return f"{type(lm).__qualname__} {json.dumps(config, sort_keys=True, default=str)}"
