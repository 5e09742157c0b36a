"""Logits processor that leaves a hypothesis only the tokens with which its text holds and avoids what it should.

Log-probabilities stay those of the model: what is excluded does not make the rest likelier.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.generation.options import IMPOSSIBLE, GenerateOptions
from mmprefix.generation.phrase_tables import FAR, PhraseTables, TextState
from mmprefix.generation.phrases import contains
from mmprefix.generation.token_texts import TokenTexts
from mmprefix.types import to_list

START = TextState(0)


class PhraseConstraint:
    """Constraint of one search: ``stops`` are its token ids that end a text, ``opening`` the tokens of ``start_with``.

    Raises InputError for phrases that the decoder cannot write, or not in ``max_new_tokens``.
    """

    def __init__(self, texts: TokenTexts, options: GenerateOptions, stops: Tensor, opening: Sequence[int] = ()) -> None:
        must_hold, avoid = tuple(options.must_hold), tuple(options.avoid)
        self.tables = PhraseTables.of(texts, must_hold, avoid)
        self.stops: list[int] = to_list(stops)
        self.stop_set, self.most = set(self.stops), options.max_new_tokens
        self._states: dict[int, dict[tuple[int, ...], TextState]] = {}  # by length of the hypotheses: the latest two
        self._penalties: dict[tuple[TextState, int, bool], Tensor] = {}
        start = START
        for token in opening:
            start = self.advance(start, token)
        self.tables.require_writable(start, self.most - len(opening), (must_hold, avoid))
        self.start_distance = self.tables.left(start)

    def __call__(self, log_probs: Tensor, hypotheses: Tensor) -> Tensor:
        """Log-probabilities (B W V) after ``hypotheses`` (B W n) → those of the tokens that are allowed."""
        return self._only(log_probs, hypotheses, nearer=False)

    def nearer(self, log_probs: Tensor, hypotheses: Tensor) -> Tensor:
        """Log-probabilities (B W V) of the tokens alone that take a text nearer to holding all its phrases."""
        return self._only(log_probs, hypotheses, nearer=True)

    def advance(self, state: TextState, token: int) -> TextState:
        """State after one more token; one that ends the text counts with the text that it has."""
        following = self.tables.advance(state, token)
        return following._replace(ended=True) if token in self.stop_set and not state.ended else following

    def states(self, hypotheses: Tensor) -> list[list[TextState]]:
        """State of each hypothesis (B W n)."""
        length = hypotheses.shape[-1]
        own, before = self._states.setdefault(length, {}), self._states.get(length - 1, {})
        for old in [n for n in self._states if n < length - 1]:
            del self._states[old]
        return [[self._state(tuple(row), own, before) for row in rows] for rows in to_list(hypotheses)]

    def _state(
        self,
        tokens: tuple[int, ...],
        own: dict[tuple[int, ...], TextState],
        before: dict[tuple[int, ...], TextState],
    ) -> TextState:
        if tokens not in own:
            state = before.get(tokens[:-1]) if tokens else START
            if state is None:
                state = START
                for token in tokens[:-1]:
                    state = self.advance(state, token)
            own[tokens] = self.advance(state, tokens[-1]) if tokens else state
        return own[tokens]

    def _only(self, log_probs: Tensor, hypotheses: Tensor, nearer: bool) -> Tensor:
        left, vocabulary = self.most - hypotheses.shape[-1], log_probs.shape[-1]
        states = self.states(hypotheses)
        different = list(dict.fromkeys(state for row in states for state in row))
        masks = [self._excluded(state, left, nearer, vocabulary) for state in different]
        if len(different) == 1:
            return log_probs.masked_fill(masks[0].to(log_probs.device), IMPOSSIBLE)
        index = torch.tensor([[different.index(state) for state in row] for row in states], device=log_probs.device)
        return log_probs.masked_fill(torch.stack(masks).to(log_probs.device)[index], IMPOSSIBLE)

    def _excluded(self, state: TextState, left: int, nearer: bool, vocabulary: int) -> Tensor:
        """Mask (V,) of the tokens that may not follow a state; none after an end, and where all is lost already."""
        if state.ended or self.tables.left(state) >= FAR:
            return torch.zeros(vocabulary, dtype=torch.bool)
        limit = self.tables.left(state) if nearer else min(left, self.tables.farthest + 2)
        key = state, limit, nearer
        if key not in self._penalties:
            allowed = self.tables.allowed(state, limit)
            excluded = torch.ones(vocabulary, dtype=torch.bool)
            count = min(vocabulary, len(allowed))
            excluded[:count] = ~allowed[:count]
            for stop in self.stops:  # a text that ends must be complete
                if stop < vocabulary:
                    excluded[stop] = nearer or self.tables.left(self.tables.advance(state, stop)) > 0
            self._penalties[key] = excluded
        return self._penalties[key]


def require_holding(text: str, options: GenerateOptions) -> str:
    """``text``. Raises InputError where it does not hold what it should: its decoder writes tokens in another way."""
    missing = [phrase for phrase in options.must_hold if not contains(text, phrase)]
    missing += [phrase for phrase in options.avoid if contains(text, phrase)]
    if missing or not text.startswith(options.start_with):
        raise InputError(f"generate: {text!r} breaks {(missing or [options.start_with])[0]!r}: this decoder's tokens "
                         "do not add up to its text")  # fmt: skip
    return text
