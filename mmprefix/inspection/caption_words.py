"""Which part of the input each word of a caption needs: what its log-probability loses when the part is hidden."""

from __future__ import annotations

from itertools import chain
from typing import Unpack

import numpy as np
import torch

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.inference.call_options import CallOptions
from mmprefix.inference.inputs import Input
from mmprefix.inference.predictor import Predictor
from mmprefix.inspection.hiding import hide_cells
from mmprefix.inspection.maps import Maps, scaled_maps
from mmprefix.inspection.prefix_rows import one_input, run_inputs
from mmprefix.inspection.words import composed
from mmprefix.kv_cache.cache import cache_over, text_mask
from mmprefix.kv_cache.packing import pack_texts
from mmprefix.kv_cache.state import State
from mmprefix.types import Batch, to_list

_ROUNDING = 1e-4  # nats: a loss up to this is that of float32 sums taken in another order


def caption_map(
    model: Predictor,
    file: Input,
    *,
    text: str | None = None,
    branch: str | None = None,
    grid: int | None = None,
    seconds: float | None = None,
    **options: Unpack[CallOptions],
) -> Maps:
    """One map for each word of ``text`` (default: the caption that the model writes), labelled with the word.

    A cell's value is the log-probability that the word loses, given the words before it, when the cell is hidden; what
    a word gains is shown as 0. The words' prefix is computed as in ``attention_maps``, whose other arguments these are.
    Raises InputError for a text without words.
    """
    value = one_input(file, options)
    hidden = hide_cells(model, value, branch=branch, grid=grid, seconds=seconds)
    caption = model(hidden.whole, **options) if text is None else text
    words = caption.split()
    if not words:
        raise InputError("caption_map: the text has no words; give text, or an input that the model captions")
    decoder = composed(model.model.decoder)

    def compute(batch: Batch) -> list[list[float]]:
        prompts = model.model.prompts(batch)
        ids = [decoder.codec.target_ids(prompt, caption) for prompt in prompts]
        state = decoder.append(model.model.prefill(batch), prompts)
        rows = zip(_log_probs(decoder, state, ids), ids, strict=True)
        return [_by_word(decoder, own, scores, len(words)) for scores, own in rows]

    whole, *changed = run_inputs(model, list(chain([hidden.whole], hidden.copies)), options, compute)
    losses = np.array(whole)[:, None] - np.array(changed).T  # (W, cells)
    maps, strength = scaled_maps(losses.reshape(len(words), *hidden.shape), _ROUNDING)
    place = (hidden.x, hidden.y, tuple(words), hidden.branch, hidden.kind)
    return Maps(maps, strength, *place, "caption", hidden.size)


def _log_probs(decoder: ComposedDecoder, state: State, ids: list[list[int]]) -> list[list[float]]:
    """Log-probability of each token of each input's text after ``state``, which a text can follow."""
    longest = max(len(tokens) for tokens in ids)
    decoder.language_model.require_room(state, longest)
    hidden = decoder.language_model.last_hidden(state)[:, None]
    if longest > 1:
        tokens, text, offset = pack_texts([[own[:-1]] for own in ids]).to(state.mask.device).unbind()
        places = {"visible": text_mask(text, offset), "position_ids": decoder.position_ids(state, offset)}
        output = decoder.forward_tokens(state, cache_over(state.cache), decoder.embed(tokens), **places)
        hidden = torch.cat([hidden, output], dim=1)  # (B N E)
    scores = decoder.logits(hidden).float().log_softmax(2)
    return [to_list(row[torch.arange(len(own)), own]) for row, own in zip(scores, ids, strict=True)]


def _by_word(decoder: ComposedDecoder, ids: list[int], scores: list[float], count: int) -> list[float]:
    """Sums over the tokens of each of ``count`` words; tokens behind the last word, as end-of-text, are left out."""
    sums, before = [0.0] * count, 0
    for number, score in enumerate(scores):
        seen = len(decoder.codec.decode(ids[: number + 1]).split())
        ends = number == len(ids) - 1 and seen == before  # end of text writes nothing
        if not ends:
            sums[min(max(seen, 1), count) - 1] += score
        before = seen
    return sums
