"""An automaton over characters, lifted to the tokens of a vocabulary: where each token leads, and how far the end is.

A row of the lifted table is made when a search first comes to its state, over all tokens at once, and kept with the
codec for the next call. The number of tokens that a state still needs is a shortest path through the states; a search
that never goes where too few tokens are left cannot come to a dead end.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.generation.phrases import OTHER, PhraseAutomaton
from mmprefix.generation.token_texts import TokenTexts

FAR = 1 << 14  # tokens to where no path leads
SMALL_VOCABULARY = 2000  # of which all tokens count as steps of a shortest path
KEPT = 16  # sets of phrases whose tables are kept with a codec


class TextState(NamedTuple):
    """State of the automaton, the phrases that the text holds (bits), bytes of a character that is not complete."""

    number: int
    held: int = 0
    pending: bytes = b""
    ended: bool = False


@dataclass(frozen=True)
class TokenRow:
    """States that each token (V,) leads to from one state, and the phrases that it completes (bits)."""

    state: np.ndarray
    hits: np.ndarray


class PhraseTables:
    """Tables of the phrases ``must_hold`` and ``avoid`` for the tokens of ``texts``.

    ``distance`` (S+1 2^m): tokens that a text needs at least until it may end; an upper bound where the vocabulary is
    large: a text may end where all m phrases are held and none is avoided.
    """

    def __init__(self, texts: TokenTexts, must_hold: tuple[str, ...], avoid: tuple[str, ...]) -> None:
        self.texts, self.automaton = texts, PhraseAutomaton(must_hold, avoid)
        self.all_held = (1 << len(must_hold)) - 1
        automaton = self.automaton
        self._class_of_code = np.array([automaton.class_of(letter) for letter in texts.letters()], dtype=np.int16)
        self._classes = self._class_of_code[texts.codes]
        letters = {*texts.letters()}
        self.unwritten = {letter for letter in automaton.classes if letter not in letters}  # by a token of its own
        spelled = sorted(self.unwritten) if texts.spells_bytes else []
        self._spelled = [(letter.encode(), automaton.classes[letter]) for letter in spelled]
        self._rows: dict[int, TokenRow] = {}
        self._masks: dict[tuple[TextState, int], Tensor] = {}
        self.distance = self._distances()
        self.farthest = int(self.distance[self.distance < FAR].max(initial=0))

    @classmethod
    def of(cls, texts: TokenTexts, must_hold: tuple[str, ...], avoid: tuple[str, ...]) -> PhraseTables:
        """Tables that an earlier call left with ``texts``, or new ones."""
        key = must_hold, avoid
        tables = texts.tables.get(key) or cls(texts, must_hold, avoid)
        texts.tables[key] = tables
        while len(texts.tables) > KEPT:
            texts.tables.popitem(last=False)
        return tables

    def require_writable(self, start: TextState, room: int, options: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        """Raise InputError where no text of ``room`` tokens after ``start`` holds ``options`` (must_hold, avoid)."""
        needed, (must_hold, avoid) = self.left(start), options
        if needed <= room:
            return
        for phrase in must_hold:
            missing = [letter for letter in phrase.casefold() if letter in self.unwritten]
            if missing and not self._spelled:
                raise InputError(f"generate: must_hold={phrase!r}: this decoder cannot write {missing[0]!r}")
            if needed >= FAR and PhraseTables(self.texts, (phrase,), ()).distance[0, 0] >= FAR:
                raise InputError(f"generate: must_hold={phrase!r}: this decoder has no tokens that write it")
        named = f"must_hold={list(must_hold)}" if must_hold else f"avoid={list(avoid)}"
        if needed >= FAR:
            raise InputError(f"generate: {named}: this decoder has no tokens that write such a text")
        raise InputError(f"generate: {named}: takes {needed} tokens, and max_new_tokens leaves {room}; raise it")

    def left(self, state: TextState) -> int:
        """Tokens that a text in ``state`` needs until it may end; 0: it may, ``FAR``: it never may."""
        if state.ended:
            return 0
        shown = self._shown(state)
        distance = int(self.distance[shown.number, shown.held])
        if state.pending:  # or the character is completed
            for text, number in self._spelled:
                if text.startswith(state.pending):
                    held = state.held | int(self.automaton.hits[state.number, number])
                    after = int(self.distance[int(self.automaton.table[state.number, number]), held])
                    distance = min(distance, len(text) - len(state.pending) + after)
        return distance

    def advance(self, state: TextState, token: int) -> TextState:
        """State after one more token."""
        if state.ended or token >= len(self.texts.texts):
            return state
        if state.pending or not self.texts.whole[token]:
            return self._advance_bytes(state, self.texts.texts[token])
        row = self._row(state.number)
        return TextState(int(row.state[token]), state.held | int(row.hits[token]))

    def allowed(self, state: TextState, left: int) -> Tensor:
        """Tokens (V,) after which a text may still end within ``left`` - 1 more tokens, stops not considered."""
        left = min(left, self.farthest + 2)
        mask = self._masks.get((state, left))
        if mask is None:
            mask = torch.as_tensor(self._distance_after(state) <= left - 1)
            if len(self._masks) > 4096:
                self._masks.clear()
            self._masks[state, left] = mask
        return mask

    def nearer(self, state: TextState) -> Tensor:
        """Tokens (V,) that take a text nearer to where it may end."""
        return self.allowed(state, self.left(state))

    def _distance_after(self, state: TextState) -> np.ndarray:
        """Distance (V,) after each token."""
        shown = self._shown(state)
        row = self._row(shown.number)
        result = self.distance[row.state, shown.held | row.hits]
        for token in self.texts.cut:
            result[token] = self.left(self.advance(state, token))
        if state.pending:  # tokens without a text leave the bytes as they are
            for token in self.texts.silent:
                result[token] = self.left(state)
        return result

    def _shown(self, state: TextState) -> TextState:
        """State whose incomplete character is what it would be at the end of a text: a replacement character."""
        if not state.pending:
            return state
        number, held = int(self.automaton.table[state.number, OTHER]), int(self.automaton.hits[state.number, OTHER])
        return TextState(number, state.held | held)

    def _advance_bytes(self, state: TextState, text: bytes) -> TextState:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        shown = decoder.decode(state.pending + text)
        number, held = self.automaton.read(state.number, shown)
        return TextState(number, state.held | held, decoder.getstate()[0])

    def _row(self, state: int) -> TokenRow:
        if state not in self._rows:
            self._rows[state] = self._make_row(state)
        return self._rows[state]

    def _make_row(self, state: int) -> TokenRow:
        """All complete tokens, read character by character side by side."""
        texts, automaton = self.texts, self.automaton
        count = len(texts.order)
        numbers, bits = np.full(count, state, dtype=np.int32), np.zeros(count, dtype=np.int32)
        ordered = texts.lengths[texts.order]
        for place in range(int(ordered[0]) if count else 0):
            still = int(np.searchsorted(-ordered, -place, side="left"))  # tokens that are longer than ``place``
            classes = self._classes[texts.start[:still] + place]
            bits[:still] |= automaton.hits[numbers[:still], classes]
            numbers[:still] = automaton.table[numbers[:still], classes]
        row = TokenRow(np.empty_like(numbers), np.empty_like(bits))
        row.state[texts.order], row.hits[texts.order] = numbers, bits
        return row

    def _distances(self) -> np.ndarray:
        automaton, states = self.automaton, self.automaton.dead + 1
        following, hits, cost = self._steps()
        distance = np.full((states, self.all_held + 1), FAR, dtype=np.int32)
        for held in range(self.all_held + 1):
            ends = ~automaton.bad_end & ((held | automaton.held_at_end) == self.all_held)
            distance[ends, held] = 0
        while True:
            before = distance.copy()
            for held in range(self.all_held + 1):
                nearest = (before[following, held | hits] + cost).min(1, initial=FAR)
                distance[:, held] = np.minimum(distance[:, held], nearest)
            distance = np.minimum(distance, FAR)
            if (distance == before).all():
                return distance

    def _steps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Next state and hits (S+1 H) of the H texts that a shortest path may be made of, and their tokens (H)."""
        automaton, rows = self.automaton, list[tuple[np.ndarray, np.ndarray]]()
        useful = [(classes, 1) for classes in self._useful_texts()]
        useful += [((number,), len(text)) for text, number in self._spelled]
        for classes, _ in useful:
            numbers, bits = np.arange(automaton.dead + 1), np.zeros(automaton.dead + 1, dtype=np.int32)
            for number in classes:
                bits |= automaton.hits[numbers, number]
                numbers = automaton.table[numbers, number]
            rows.append((numbers, bits))
        cost = np.array([count for _, count in useful], dtype=np.int32)
        return np.stack([numbers for numbers, _ in rows], 1), np.stack([bits for _, bits in rows], 1), cost

    def _useful_texts(self) -> list[tuple[int, ...]]:
        """Different classes of the tokens that count for a shortest path.

        Of a large vocabulary those are single characters and parts of the phrases to be held, with a space around them.
        """
        texts, automaton = self.texts, self.automaton
        lengths, small = texts.lengths[texts.order], len(texts.texts) <= SMALL_VOCABULARY
        space = automaton.class_of(" ")
        phrases = [(space, *map(automaton.class_of, phrase), space) for phrase in automaton.phrases[: automaton.held]]
        parts = {phrase[i:j] for phrase in phrases for i in range(len(phrase)) for j in range(i + 1, len(phrase) + 1)}
        most = int(lengths.max(initial=0)) if small else max(map(len, phrases), default=1)
        useful: set[tuple[int, ...]] = set()
        for start, length in zip(texts.start.tolist(), lengths.tolist(), strict=True):
            if not 0 < length <= most:
                continue
            classes = tuple(self._classes[start : start + length].tolist())
            if small or length == 1 or classes in parts:
                useful.add(classes)
        return sorted(useful, key=len)
