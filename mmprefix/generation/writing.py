"""Texts of a decoder after a state: written to their end, or in pieces that nothing that follows can change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.generation.constraints import PhraseConstraint, require_holding
from mmprefix.generation.next_tokens import LogitsProcessor
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.search import Steps, open_tree, run_to_end, search
from mmprefix.generation.strategies import Hypothesis, Opening
from mmprefix.generation.token_texts import TokenTexts
from mmprefix.kv_cache.protocols import TreeModel
from mmprefix.kv_cache.state import State
from mmprefix.types import Candidate, to_list


class WritingCodec(Protocol):
    """Token ids → text, and how much of a text later tokens leave as it is."""

    @cached_property
    def token_texts(self) -> TokenTexts:
        """Texts of all tokens."""
        ...

    def target_ids(self, before: str, text: str) -> list[int]:
        """Token ids of a text after ``before``, end of text included."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        ...

    def settled_text(self, ids: list[int]) -> str:
        """Start of the text of ``ids`` that no later token changes."""
        ...


class PositionLimit(Protocol):
    """Language model with a number of positions, whose state predicts the next token."""

    def require_room(self, state: State, more: int) -> None:
        """Raise InputError if ``more`` tokens after ``state`` are too many."""
        ...

    def last_hidden(self, state: State) -> Tensor:
        """Hidden states (B E) that predict the first token."""
        ...


class TokenLoss(Protocol):
    """Losses of texts."""

    @property
    def nll(self) -> Tensor:
        """Summed negative log-likelihood of each text (C,)."""
        ...


class WritingModel(TreeModel, Protocol):
    """Decoder that texts are searched with."""

    @property
    def codec(self) -> WritingCodec:
        """Token ids ↔ text."""
        ...

    @property
    def language_model(self) -> PositionLimit:
        """Language model below it."""
        ...

    def token_loss(self, state: State, ids: list[list[list[int]]]) -> TokenLoss:
        """Log-probabilities of texts as token ids."""
        ...

    def extend(self, state: State, embeds: Tensor, mask: Tensor) -> State:
        """Run embeddings (B N E) after ``state``."""
        ...

    def stop_ids(self, exactly: bool = False) -> Tensor:
        """Token ids (any number) that end a text."""
        ...

    def logits_processors(self, options: GenerateOptions, stops: Tensor) -> list[LogitsProcessor]:
        """Constraints on the next token of each hypothesis."""
        ...


def search_steps(
    decoder: WritingModel,
    state: State,
    options: GenerateOptions,
    stops: Tensor | None = None,
    *,
    before: str = "",
) -> Steps[list[list[Hypothesis]]]:
    """Search after ``state`` that stops after each step; ``stops`` are by default those of the decoder's codec.

    ``before`` is the end of the prompt that the state holds: it says whether ``start_with`` needs a space.
    """
    stops = decoder.stop_ids(exactly=options.ranking == "clipcap") if stops is None else stops
    ids = opening_ids(decoder.codec, options, before, to_list(stops))
    decoder.language_model.require_room(state, options.max_new_tokens)
    processors = decoder.logits_processors(options, stops)
    if options.constrains:
        processors.append(PhraseConstraint(decoder.codec.token_texts, options, stops, ids))
    opening = None
    if ids:
        tokens = torch.tensor(ids, device=state.mask.device)
        opening = Opening(tokens, -decoder.token_loss(state, [[ids]] * len(state.mask)).nll)
        rows = tokens.expand(len(state.mask), -1)
        state = decoder.extend(state, decoder.embed(rows), torch.ones_like(rows, dtype=torch.bool))
    with open_tree(decoder, state, options.width, options.max_new_tokens - len(ids) - 1) as tree:
        logits = decoder.logits(decoder.language_model.last_hidden(state))
        return (yield from search(logits, tree, options, stops=stops, processors=processors, opening=opening))


def opening_ids(codec: WritingCodec, options: GenerateOptions, before: str, stops: list[int]) -> list[int]:
    """Token ids of ``start_with``. Raises InputError for a text that the decoder cannot begin with."""
    text = options.start_with
    if not text:
        return []
    try:
        ids = codec.target_ids(before, text)
    except InputError as error:
        raise InputError(f"generate: start_with={text!r}: {error}") from error
    while ids and ids[-1] in stops:
        ids = ids[:-1]
    if text not in (codec.decode(ids), codec.settled_text(ids)) or not {*stops}.isdisjoint(ids):
        raise InputError(f"generate: start_with={text!r}: this decoder would write {codec.decode(ids)!r} instead")
    if len(ids) >= options.max_new_tokens:
        most = options.max_new_tokens
        raise InputError(f"generate: start_with={text!r}: has {len(ids)} tokens; raise max_new_tokens={most}")
    return ids


def write_texts(
    decoder: WritingModel, state: State, options: GenerateOptions, before: Sequence[str] | None = None
) -> list[list[Candidate]]:
    """Texts and scores of each input after ``state``, the best first; ``before`` is the end of each one's prompt."""
    endings = [text[-1:] for text in before] if before and options.start_with else [""] * len(state.mask)
    results: list[list[Candidate]] = [[] for _ in endings]
    for ending in dict.fromkeys(endings):  # the first token of a text depends on the character before it
        rows = [row for row, own in enumerate(endings) if own == ending]
        part = state if len(rows) == len(endings) else state.select(torch.tensor(rows, device=state.mask.device))
        for row, group in zip(rows, run_to_end(search_steps(decoder, part, options, before=ending)), strict=True):
            results[row] = [Candidate(_text(decoder.codec, ids, options), score) for ids, score in group]
            require_any(results[row], options)
    return results


def require_any(group: Sequence[Candidate | Hypothesis], options: GenerateOptions) -> None:
    """Raise InputError where the constraints on a text left none at all."""
    if not group and (options.constrains or options.start_with):
        raise InputError(
            "generate: no text of this decoder holds all that is asked for: must_hold, avoid, min_new_tokens and "
            "no_repeat_ngram_size leave none; ask for less"
        )


def _text(codec: WritingCodec, ids: list[int], options: GenerateOptions) -> str:
    text = codec.decode(ids)
    return require_holding(text, options) if options.constrains or options.start_with else text


@torch.no_grad()  # as a decorator of a generator it ends with each piece
def stream_text(decoder: WritingModel, state: State, options: GenerateOptions, before: str = "") -> Iterator[str]:
    """Yields the best text of the first input in pieces, each as soon as no step of the search can change it.

    All pieces together are the text of ``write_texts``. Raises ValueError where the codec's ``settled_text`` is not how
    the text begins.
    """
    codec, steps, count, text = decoder.codec, search_steps(decoder, state, options, before=before), 0, ""
    while True:
        try:
            settled = next(steps).settled()
        except StopIteration as end:
            best: list[Hypothesis] = end.value[0]
            require_any(best, options)
            final = _text(codec, best[0][0], options)
            break
        if len(settled) > count:
            count, longer = len(settled), codec.settled_text(settled)
            if len(longer) > len(text):
                yield longer[len(text) :]
                text = longer
    if not final.startswith(text):
        raise ValueError(f"{type(codec).__name__}.settled_text: {text!r} is not how the text {final!r} begins")
    if len(final) > len(text):
        yield final[len(text) :]
