"""Words and phrases that a text must hold or must not: as options, and as an automaton over the text's characters.

A phrase occurs where its characters stand, in whatever case, and neither its first nor its last word goes on: "man" is
no part of "woman". That is the regular expression ``(?<!\\w)phrase(?!\\w)`` over casefolded text. The automaton is that
of Aho and Corasick (https://doi.org/10.1145/360825.360855) whose states know the word boundaries too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mmprefix.errors import InputError

MAX_HELD, MAX_AVOIDED = 8, 100  # phrases of a call: each that must be held doubles the states
OTHER_WORD, OTHER = 0, 1  # classes of the characters that no phrase has

Item = tuple[int, int]  # a phrase, and how many of its characters stand at the end of the text
Key = tuple[bool, frozenset[Item]]  # the last character belongs to a word; items


def contains(text: str, phrase: str) -> bool:
    """True if ``phrase`` occurs in ``text``, as whole words, in any case."""
    folded = phrase.casefold()
    before = r"(?<!\w)" if is_word(folded[0]) else ""
    after = r"(?!\w)" if is_word(folded[-1]) else ""
    return re.search(f"{before}{re.escape(folded)}{after}", text.casefold()) is not None


def is_word(character: str) -> bool:
    """True for the characters that ``\\w`` matches."""
    return character.isalnum() or character == "_"


def require_phrases(start_with: str, must_hold: Sequence[str], avoid: Sequence[str]) -> None:
    """Raise InputError for phrases that are empty or too many, and for those that contradict each other."""
    for option, phrases, most in (("must_hold", must_hold, MAX_HELD), ("avoid", avoid, MAX_AVOIDED)):
        if "" in phrases:
            raise InputError(f"generate: {option}={list(phrases)}: a phrase is empty; give a word or several")
        if len(phrases) > most:
            raise InputError(f"generate: {option}: {len(phrases)} phrases; at most {most} can be asked for")
    if start_with != start_with.strip():
        raise InputError(f"generate: start_with={start_with!r}: begins or ends with a space; leave it out")
    for avoided in avoid:
        if start_with and contains(start_with, avoided):
            raise InputError(f"generate: start_with={start_with!r}: contains {avoided!r}, which is to be avoided")
        for phrase in must_hold:
            if contains(phrase, avoided):
                raise InputError(f"generate: must_hold={phrase!r}: contains {avoided!r}, which is to be avoided")


class PhraseAutomaton:
    """Deterministic automaton of S states over C classes of casefolded characters; it starts in state 0.

    ``table`` (S+1 C): next state; S is the state after an avoided phrase, which is never left. ``hits`` (S+1 C): bits
    of the phrases to be held that this character completes. ``held_at_end`` (S+1,): bits of those that the end of the
    text completes, ``bad_end`` (S+1,): True where it completes an avoided one.
    """

    def __init__(self, must_hold: Sequence[str], avoid: Sequence[str]) -> None:
        self.phrases = [phrase.casefold() for phrase in (*must_hold, *avoid)]
        self.held = len(must_hold)
        characters = sorted(set("".join(self.phrases)))
        self.classes = {character: n for n, character in enumerate(characters, start=2)}
        self._alphabet = ["", "", *characters]
        self._is_word = [True, False, *map(is_word, characters)]
        self._build()

    def _build(self) -> None:
        numbers: dict[Key, int] = {(False, frozenset()): 0}
        order, rows = list(numbers), list[list[tuple[int, int]]]()
        for key in order:  # grows
            row: list[tuple[int, int]] = []
            for number in range(len(self._alphabet)):
                following, hits = self._step(key, number)
                if following is None:
                    row.append((-1, 0))
                    continue
                if following not in numbers:
                    numbers[following] = len(order)
                    order.append(following)
                row.append((numbers[following], hits))
            rows.append(row)
        both = np.array([*rows, [(-1, 0)] * len(self._alphabet)], dtype=np.int32)
        self.dead = len(order)
        self.table, self.hits = np.where(both[..., 0] < 0, self.dead, both[..., 0]), both[..., 1]
        ends = [self._at_end(items) for _, items in order]
        self.held_at_end = np.array([*(bits for bits, _ in ends), 0], dtype=np.int32)
        self.bad_end = np.array([*(bad for _, bad in ends), True])

    def _step(self, key: Key, number: int) -> tuple[Key | None, int]:
        """State after a character of class ``number`` (None: an avoided phrase is complete), and the completed bits."""
        (in_word, items), character, word = key, self._alphabet[number], self._is_word[number]
        hits = [i for i, p in items if p == len(self.phrases[i]) and not word]
        longer = [(i, p + 1) for i, p in items if p < len(self.phrases[i]) and self.phrases[i][p] == character]
        begins = bool(character) and not (word and in_word)
        longer += [(i, 1) for i, phrase in enumerate(self.phrases) if begins and phrase[0] == character]
        whole = [i for i, p in longer if p == len(self.phrases[i]) and not word]
        hits += whole
        if any(i >= self.held for i in hits):
            return None, 0
        kept = frozenset((i, p) for i, p in longer if word or p < len(self.phrases[i]))
        return (word, kept), sum(1 << i for i in set(hits))

    def _at_end(self, items: frozenset[Item]) -> tuple[int, bool]:
        complete = [i for i, p in items if p == len(self.phrases[i])]
        return sum(1 << i for i in complete if i < self.held), any(i >= self.held for i in complete)

    def class_of(self, character: str) -> int:
        """Class of a casefolded character."""
        return self.classes.get(character, OTHER_WORD if is_word(character) else OTHER)

    def read(self, state: int, text: str) -> tuple[int, int]:
        """State after ``text``, and the bits of the phrases that it completes."""
        bits = 0
        for character in text.casefold():
            number = self.class_of(character)
            bits |= int(self.hits[state, number])
            state = int(self.table[state, number])
        return state, bits
