"""Texts of a decoder after a state: written to their end, or in pieces that nothing that follows can change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from mmprefix.generation.next_tokens import LogitsProcessor
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.search import Steps, open_tree, run_to_end, search
from mmprefix.generation.strategies import Hypothesis
from mmprefix.kv_cache.protocols import TreeModel
from mmprefix.kv_cache.state import State
from mmprefix.types import Candidate


class WritingCodec(Protocol):
    """Token ids → text, and how much of a text later tokens leave as it is."""

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        ...

    def settled_text(self, ids: list[int]) -> str:
        """Start of the text of ``ids`` that no later token changes."""
        ...


class PositionLimit(Protocol):
    """Language model with a number of positions, whose state predicts the next token."""

    def require_room(self, state: State, tokens: int) -> None:
        """Raise InputError if ``tokens`` more than ``state`` are too many."""
        ...

    def last_hidden(self, state: State) -> Tensor:
        """Hidden states (B E) that predict the first token."""
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

    def stop_ids(self, exactly: bool = False) -> Tensor:
        """Token ids (any number) that end a text."""
        ...

    def logits_processors(self, options: GenerateOptions, stops: Tensor) -> list[LogitsProcessor]:
        """Constraints on the next token of each hypothesis."""
        ...


def search_steps(
    decoder: WritingModel, state: State, options: GenerateOptions, stops: Tensor | None = None
) -> Steps[list[list[Hypothesis]]]:
    """Search after ``state`` that stops after each step; ``stops`` are by default those of the decoder's codec."""
    stops = decoder.stop_ids(exactly=options.ranking == "clipcap") if stops is None else stops
    decoder.language_model.require_room(state, options.max_new_tokens)
    with open_tree(decoder, state, options.width, options.max_new_tokens - 1) as tree:
        processors = decoder.logits_processors(options, stops)
        logits = decoder.logits(decoder.language_model.last_hidden(state))
        return (yield from search(logits, tree, options, stops=stops, processors=processors))


def write_texts(decoder: WritingModel, state: State, options: GenerateOptions) -> list[list[Candidate]]:
    """Texts and scores of each input after ``state``, the best first."""
    groups = run_to_end(search_steps(decoder, state, options))
    return [[Candidate(decoder.codec.decode(ids), score) for ids, score in group] for group in groups]


@torch.no_grad()  # as a decorator of a generator it ends with each piece
def stream_text(decoder: WritingModel, state: State, options: GenerateOptions) -> Iterator[str]:
    """Yields the best text of the first input in pieces, each as soon as no step of the search can change it.

    All pieces together are the text of ``write_texts``. Raises ValueError where the codec's ``settled_text`` is not how
    the text begins.
    """
    codec, steps, count, text = decoder.codec, search_steps(decoder, state, options), 0, ""
    while True:
        try:
            settled = next(steps).settled()
        except StopIteration as end:
            best: list[Hypothesis] = end.value[0]
            final = codec.decode(best[0][0])
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
