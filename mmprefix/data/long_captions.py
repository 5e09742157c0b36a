"""Captions that do not fit into the decoder's positions: found before a run's first step, and left out or cut.

A run of 500,000 captions waits seconds: a caption of plain letters has no more tokens than letters, so that most
need no tokenizer; the others are counted in large batches, and only those near the limit exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, Protocol

from mmprefix.data.histories import longest_context
from mmprefix.data.manifest import Example, InputRef, RowFault, listing
from mmprefix.prompt_template import PromptTemplate

log = logging.getLogger(__name__)

LongCaptions = Literal["error", "skip", "cut"]
_NEAR = 16  # tokens by which a text behind a prompt may differ from the text alone
_BATCH = 8192  # texts that are counted at once


class TextRoom(Protocol):
    """Positions of a decoder, and the tokens of texts in it."""

    limit: int  # positions of prefix, prompt and text together

    def measure(self, longest: Mapping[str, InputRef]) -> None:
        """Take the prefixes of inputs of these branches to be at most as long as those of the ``longest``."""
        ...

    def left(self, inputs: Mapping[str, InputRef], texts: tuple[str, str], *, exact: bool = False) -> int:
        """Positions left for a text after the prefix of ``inputs`` and the ``texts`` (context, prompt).

        At least so many, or with ``exact`` so many.
        """
        ...

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text alone, its end included."""
        ...

    def length(self, texts: tuple[str, str], text: str) -> int:
        """Tokens of ``text`` after ``texts`` (context, prompt), its end included."""
        ...

    def shorten(self, texts: tuple[str, str], text: str, most: int) -> str:
        """The first words of ``text``, of at most ``most`` tokens; "" where not one fits."""
        ...


@dataclass(frozen=True)
class _Long:
    """Caption ``number`` of example ``row``, its tokens, and the positions that are left for it."""

    row: int
    number: int
    tokens: int
    left: int


def fit_captions(
    examples: Sequence[Example],
    seconds: Mapping[tuple[str, InputRef], float],
    room: TextRoom,
    *,
    prompt: str = "",
    mode: LongCaptions = "error",
    wording: PromptTemplate | None = None,
) -> tuple[list[Example], list[RowFault]]:
    """``examples`` whose captions fit into the decoder, and the faults of the others.

    ``seconds`` of the inputs tell the longest one, ``prompt`` is that of rows that have none. With ``mode`` "skip" long
    captions are left out, and rows that have no other, with "cut" they are shortened; both are logged. A row whose
    prefix and prompt leave no room for a word is a fault then. With a ``wording`` a prompt holds the longest earlier
    texts of its user.
    """
    _measure(examples, seconds, room)
    fit = _Fit(room, prompt, wording)
    by_row: dict[int, list[_Long]] = {}
    for caption in fit.long_captions(examples):
        by_row.setdefault(caption.row, []).append(caption)
    kept: list[Example] = []
    faults: list[RowFault] = []
    changed: list[RowFault] = []
    for row, example in enumerate(examples):
        own = by_row.get(row, [])
        messages = [_fault(example, caption, room.limit) for caption in own]
        fitting = fit.fitted(example, own, mode) if own and mode != "error" else example
        if own and (mode == "error" or (mode == "cut" and not fitting.captions)):
            faults += messages
            continue
        changed += messages
        kept += [fitting] if fitting.captions or not own else []
    if changed:
        done = "left out" if mode == "skip" else "cut"
        log.warning("%d captions %s (data.long_captions %s):\n%s", len(changed), done, mode, listing(changed, most=3))
    return kept, faults


class _Fit:
    """Captions of examples against a ``room``; ``prompt`` is that of rows that have none."""

    def __init__(self, room: TextRoom, prompt: str, wording: PromptTemplate | None) -> None:
        self.room, self.prompt, self.wording = room, prompt, wording

    def texts(self, example: Example) -> list[tuple[str, str]]:
        """Contexts, of which training draws one, each with the prompt."""
        own = self.prompt if example.prompt is None else example.prompt
        contexts = (example.context, *example.contexts)
        return [(longest_context(example, context, self.wording), own) for context in contexts]

    def long_captions(self, examples: Sequence[Example]) -> list[_Long]:
        """Captions longer than what is left for them."""
        suspects: dict[tuple[int, int], int] = {}  # row and number of a caption → positions left for it
        known: dict[tuple[frozenset[str], tuple[str, str]], int] = {}
        for row, example in enumerate(examples):
            for texts in self.texts(example):
                key = (frozenset(example.inputs), texts)
                if key not in known:
                    known[key] = self.room.left(example.inputs, texts)
                left = known[key]
                for number, text in enumerate(example.captions):
                    if not _surely_fits(text, left):
                        suspects[row, number] = min(left, suspects.get((row, number), left))
        long: list[_Long] = []
        pairs = iter(suspects.items())
        while some := list(islice(pairs, _BATCH)):
            counts = self.room.count([examples[row].captions[number] for (row, number), _ in some])
            for ((row, number), left), count in zip(some, counts, strict=True):
                if count > left - _NEAR and (caption := self._exactly(examples[row], row, number)):
                    long.append(caption)
        return long

    def _exactly(self, example: Example, row: int, number: int) -> _Long | None:
        """A caption that does not fit after one of the texts that may stand before it."""
        for texts in self.texts(example):
            tokens = self.room.length(texts, example.captions[number])
            if tokens > self.room.left(example.inputs, texts):
                left = self.room.left(example.inputs, texts, exact=True)
                if tokens > left:
                    return _Long(row, number, tokens, left)
        return None

    def fitted(self, example: Example, long: Sequence[_Long], mode: LongCaptions) -> Example:
        """Example without its ``long`` captions, or with them cut."""
        left = {caption.number: caption.left for caption in long}
        captions: list[str] = []
        lines: list[int] = []
        for number, text in enumerate(example.captions):
            short = text
            if number in left:
                cut = (self.room.shorten(texts, text, left[number]) for texts in self.texts(example))
                short = "" if mode == "skip" else min(cut, key=len)
            if short:
                captions.append(short)
                lines += [example.lines[number]] if example.lines else []
        return replace(example, captions=tuple(captions), lines=tuple(lines))


def _measure(examples: Sequence[Example], seconds: Mapping[tuple[str, InputRef], float], room: TextRoom) -> None:
    longest: dict[str, tuple[float, InputRef]] = {}
    for example in examples:
        for name, ref in example.inputs.items():
            length = seconds.get((name, ref))
            if length is not None and (name not in longest or length > longest[name][0]):
                longest[name] = length, ref
    room.measure({name: ref for name, (_, ref) in longest.items()})


def _surely_fits(text: str, left: int) -> bool:
    """True where a text cannot have more than ``left`` tokens: a token is a letter at least."""
    return len(text) + _NEAR <= left and text.isascii()


def _fault(example: Example, caption: _Long, limit: int) -> RowFault:
    line = example.lines[caption.number] if example.lines else example.line
    which = f"caption {caption.number + 1}" if len(example.captions) > 1 else "its caption"
    message = (
        f"id {example.id!r}: {which} has {caption.tokens} tokens, and {max(0, caption.left)} of the decoder's {limit} "
        "positions are left for it after prefix and prompt (data.long_captions skip leaves it out, cut shortens it)"
    )
    return RowFault(example.file, line, message)
