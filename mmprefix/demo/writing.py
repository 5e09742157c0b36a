"""One input, written about: the caption piece by piece with its timing, then the candidates with their scores."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmprefix.demo.calls import require_short
from mmprefix.demo.limits import Deadline
from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor
    from mmprefix.types import Candidate

MAX_CANDIDATES = 8
MAX_TOKENS = 200
MAX_WORDS = 10  # that a caption must hold, or avoid
MAX_PHRASE = 200  # characters of one of these: the search has a state for each character
MAX_START = 1000  # characters that a caption begins with
_NOBODY = "nobody"


@dataclass(frozen=True)
class Wishes:
    """Wishes of a visitor beside the file; empty fields leave it to the model."""

    prompt: str = ""
    user: str | None = None
    history: str = ""
    max_new_tokens: float | None = None
    start_with: str = ""
    must_hold: str = ""
    avoid: str = ""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of a Predictor's call. Raises InputError for what is too long or too much."""
        options: dict[str, Any] = {}
        if prompt := require_short("prompt", self.prompt):
            options["prompt"] = prompt
        if self.user and self.user != _NOBODY:
            options["user"] = self.user
        if texts := [line.strip() for line in re.split("\r\n|\r|\n", require_short("history", self.history))]:
            options |= {"history": [text for text in texts if text]} if any(texts) else {}
        if self.max_new_tokens:
            if not 1 <= self.max_new_tokens <= MAX_TOKENS:
                raise InputError(f"longest caption {self.max_new_tokens:g}: give 1 to {MAX_TOKENS} tokens")
            options["max_new_tokens"] = int(self.max_new_tokens)
        if start := require_short("begins with", self.start_with, MAX_START):
            options["start_with"] = start
        for name, text in (("must_hold", self.must_hold), ("avoid", self.avoid)):
            words = [word.strip() for word in require_short(name, text).split(",") if word.strip()]
            if len(words) > MAX_WORDS:
                raise InputError(f"{name}: {len(words)} words; this page takes at most {MAX_WORDS}")
            for word in words:
                require_short(name, word, MAX_PHRASE)
            options |= {name: words} if words else {}
        return options


@dataclass
class Timing:
    """Seconds of one call: to the first piece of the caption, to its last, and of what followed."""

    first: float | None = None
    caption: float | None = None
    pieces: int = 0
    rest: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def of(self, name: str, deadline: Deadline) -> Iterator[None]:
        """Time of the block under ``name``. Raises InputError before it where the time of the call is over."""
        deadline.check()
        before = deadline.spent
        yield
        self.rest[name] = deadline.spent - before

    def line(self) -> str:
        """The figures in one line."""
        parts = []
        if self.first is not None:
            parts.append(f"first piece after {self.first:.2f} s")
        if self.caption is not None:
            after = self.caption - (self.first or 0.0)
            rate = f", {(self.pieces - 1) / after:,.0f} pieces a second" if self.pieces > 1 and after > 0 else ""
            parts.append(f"caption in {self.caption:.2f} s ({self.pieces} pieces{rate})")
        parts += [f"{name} in {seconds:.2f} s" for name, seconds in self.rest.items()]
        return "; ".join(parts)


def write(model: Predictor, file: str, options: dict[str, Any], *, deadline: Deadline, timing: Timing) -> Iterator[str]:
    """The caption so far, as it grows; in one piece where neighbours choose it among several texts.

    Raises InputError for what the model refuses, and when the time is over.
    """
    text = ""
    with closing(model.stream(file, **options) if model.neighbours is None else _whole(model, file, options)) as pieces:
        for piece in pieces:
            timing.pieces += 1
            timing.first = timing.first or deadline.spent
            text += piece
            yield text
            deadline.check()
    timing.caption = deadline.spent


def _whole(model: Predictor, file: str, options: dict[str, Any]) -> Generator[str, None, None]:
    yield model(file, **options)


def candidates(model: Predictor, file: str, options: dict[str, Any], count: float) -> list[Candidate]:
    """The ``count`` best texts by beam search. Raises InputError for another number than 1 to ``MAX_CANDIDATES``."""
    if not 1 <= count <= MAX_CANDIDATES:
        raise InputError(f"candidates {count:g}: give 1 to {MAX_CANDIDATES}")
    return model.candidates(file, num_return=int(count), **options)
