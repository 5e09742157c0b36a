"""Words of a prefix: those of the vocabulary that lie nearest to a position, and those that it alone brings forth.

``nearest_words`` is the reading of ClipCap's section 5 (Mokady et al. 2021, https://arxiv.org/abs/2111.09734): each
position's embedding is compared with those of all tokens. Keys and values of a deep prefix are no embeddings, so it
has none; ``next_words`` asks the frozen decoder instead, and works for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar, Unpack, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmprefix.decoders.base import Decoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.inference.call_options import CallOptions
from mmprefix.inference.inputs import Input
from mmprefix.inference.predictor import Predictor
from mmprefix.inspection.prefix_rows import PrefixRow, prefix_row
from mmprefix.types import AnyPrefix, DeepPrefix, Prefix, to_list

Score = TypeVar("Score")
_ROWS_AT_ONCE = 16384  # of the embedding matrix


class Word(NamedTuple):
    """Token of the decoder as text, and the cosine of its embedding with a position's."""

    text: str
    cosine: float


class NextWord(NamedTuple):
    """Token of the decoder as text, its probability behind a position alone, and that probability without it."""

    text: str
    probability: float
    without: float


def nearest_words(
    model: Predictor, file: Input | None, *, count: int = 5, **options: Unpack[CallOptions]
) -> list[list[Word]]:
    """``count`` words nearest to each position of the prefix of one input, by cosine, the nearest first.

    Spellings of one word with and without a space before it count once. Keys and values in front of embeddings
    (``MixedPrefix``) have an empty list each. ``options``: prompt, context, user ...; see ``CallOptions``. Raises
    InputError for a prefix of keys and values alone (``next_words`` reads those), and for a ``count`` below 1.
    """
    _require_count(count)
    row, decoder = prefix_row(model, file, options), composed(model.model.decoder)
    if row.soft is None:
        raise InputError(
            "nearest_words: this model's prefix is keys and values, which lie in no space of words; use next_words"
        )
    deep, _ = row.lengths
    return [[] for _ in range(deep)] + nearest_tokens(decoder, row.soft.embeds[0], count)


def has_embeddings(model: Predictor, file: Input | None, **options: Unpack[CallOptions]) -> bool:
    """True if the prefix of one input holds embeddings, so that ``nearest_words`` and ``norms`` can read it."""
    return prefix_row(model, file, options).soft is not None


def nearest_tokens(decoder: ComposedDecoder, embeds: Tensor, count: int) -> list[list[Word]]:
    """Embeddings (P E) → ``count`` nearest words of each, as ``nearest_words`` gives them."""
    wanted = 4 * count + 4  # several tokens may be one word
    best: Tensor = torch.empty(len(embeds), 0)
    ids = torch.empty(len(embeds), 0, dtype=torch.long)
    directions = normalize(embeds.detach().float(), dim=1)
    for first, matrix in embedding_rows(decoder):
        cosines = (directions @ normalize(matrix, dim=1).T).cpu()  # (P R)
        best = torch.cat([best, cosines], dim=1)
        ids = torch.cat([ids, torch.arange(first, first + len(matrix)).expand(len(embeds), -1)], dim=1)
        best, order = best.topk(min(wanted, best.shape[1]), dim=1)
        ids = ids.gather(1, order)
    rows = zip(to_list(ids), to_list(best), strict=True)
    return [[Word(*pair) for pair in _distinct(_read(decoder, row), scores)][:count] for row, scores in rows]


def embedding_rows(decoder: ComposedDecoder) -> list[tuple[int, Tensor]]:
    """Embeddings (R E), float32, of all tokens that the tokenizer knows, in pieces, each with its first token's id."""
    model = decoder.language_model
    size = min(len(cast("Sequence[str]", decoder.tokenizer)), model.lm.get_input_embeddings().num_embeddings)
    pieces = torch.arange(size, device=model.device).split(_ROWS_AT_ONCE)
    with torch.inference_mode():
        return [(int(ids[0]), model.embed(ids[None])[0].float()) for ids in pieces]


def next_words(
    model: Predictor, file: Input | None, *, count: int = 5, **options: Unpack[CallOptions]
) -> list[list[NextWord]]:
    """``count`` words that the frozen decoder would write next if each position of the prefix stood alone.

    The decoder reads one position of the prefix, then the prompt; words are ordered by how much likelier they are than
    behind the prompt without any prefix (by p log(p / p without), in nats). For embeddings, and for keys and values.
    Raises InputError for a decoder that reads frames by cross-attention.
    """
    _require_count(count)
    row, decoder = prefix_row(model, file, options), composed(model.model.decoder)
    refuse_memory(decoder, "next_words")
    with torch.inference_mode():
        own = torch.cat([_next(decoder, prefix, row.prompt) for prefix in _each_alone(row)])  # (P V)
        bare = _next(decoder, Prefix.empty(1, decoder.width, own.device), row.prompt)
        gains = own.exp() * (own - bare)
        ids = gains.topk(min(4 * count + 4, gains.shape[1]), dim=1).indices
        pairs = torch.stack([own, bare.expand_as(own)], dim=2).exp()  # (P V 2)
        scores = to_list(pairs.gather(1, ids[..., None].expand(-1, -1, 2)))
    rows = zip(to_list(ids), scores, strict=True)
    return [[NextWord(text, *pair) for text, pair in _distinct(_written(decoder, row), s)][:count] for row, s in rows]


def composed(decoder: Decoder) -> ComposedDecoder:
    """``decoder`` as one with a language model and a codec; InputError for one of another build."""
    if not isinstance(decoder, ComposedDecoder):
        raise InputError(f"inspection: {type(decoder).__name__} has no table of words that could be compared")
    return decoder


def refuse_memory(decoder: Decoder, call: str) -> None:
    """Raise InputError for a decoder with cross-attention: beside the prefix it reads the frames themselves."""
    if decoder.memory_dim is not None:
        raise InputError(f"{call}: this model's decoder reads the frames too, so its prefix alone says nothing")


def _each_alone(row: PrefixRow) -> list[AnyPrefix]:
    """Prefixes of one position each: those of keys and values together as one batch, then those of embeddings."""
    prefixes = list[AnyPrefix]()
    if row.deep is not None:
        keys, values = (part.permute(0, 3, 2, 1, 4) for part in (row.deep.keys, row.deep.values))  # (L P H 1 K)
        prefixes.append(DeepPrefix(keys, values, row.deep.mask.T))
    if row.soft is not None:
        prefixes.append(Prefix(row.soft.embeds.transpose(0, 1), row.soft.mask.T))
    return prefixes


def _next(decoder: ComposedDecoder, prefix: Prefix | DeepPrefix | AnyPrefix, prompt: str) -> Tensor:
    """Log-probabilities (B V) of the first token behind ``prefix`` and ``prompt``."""
    state = decoder.prefill(prefix)
    state = decoder.append(state, [prompt] * len(state.mask))
    return decoder.logits(decoder.language_model.last_hidden(state)).float().log_softmax(1)


def _written(decoder: ComposedDecoder, ids: list[int]) -> list[str]:
    """Tokens as the decoder writes them; the name of one that it does not write."""
    texts = [decoder.codec.decode([number]) for number in ids]
    return [text or _name(decoder, number) for text, number in zip(texts, ids, strict=True)]


def _read(decoder: ComposedDecoder, ids: list[int]) -> list[str]:
    """Tokens of the tokenizer as text; the name of one that is no text alone."""
    texts: list[str] = [str(decoder.codec.tokenizer.decode([number])).strip() for number in ids]
    return [
        text if text and "\ufffd" not in text else _name(decoder, number)
        for text, number in zip(texts, ids, strict=True)
    ]


def _name(decoder: ComposedDecoder, number: int) -> str:
    names = cast("list[str | None]", decoder.codec.tokenizer.convert_ids_to_tokens([number]))
    return names[0] or f"<{number}>"


def _distinct(texts: list[str], scores: list[Score]) -> list[tuple[str, Score]]:
    """Texts and scores, each text once, with its first score."""
    first: dict[str, Score] = {}
    for text, score in zip(texts, scores, strict=True):
        first.setdefault(text, score)
    return list(first.items())


def _require_count(count: int) -> None:
    if count < 1:
        raise InputError(f"count {count}: give a number of words from 1 on")
