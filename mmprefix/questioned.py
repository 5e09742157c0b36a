"""Data of spoken language understanding: rows with intent and slots become questions with answers, by a schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmprefix.data import PairData
from mmprefix.fields import values
from mmprefix.gold import faults, read_gold
from mmprefix.manifest import Example
from mmprefix.questions import Framing, pairs
from mmprefix.rows import Rows
from mmprefix.schema import Schema, read_schema
from mmprefix.types import InputError


@dataclass(frozen=True)
class Asking:
    """What a training asks about a row of a manifest; see ``mmprefix.questions.pairs``."""

    schema: Schema
    framing: Framing
    intent_field: str
    absent: float
    no: float
    held_out: tuple[str, ...]
    transcribe: str | None

    def __call__(self, example: Example, rng: np.random.Generator | None) -> list[tuple[str, str]]:
        """Questions and answers."""
        row = values(example)
        gold = read_gold(row, self.intent_field)
        found = pairs(self.schema, gold, self.framing, rng, self.absent, self.no, self.held_out)
        said = [(question.text, answer) for question, answer in found]
        if self.transcribe and row.get("transcript"):
            said.append((self.transcribe, str(row["transcript"])))
        return said


class QuestionData(PairData):
    """Utterances with intents and slots, in speech or text, asked about as a schema says.

    Manifests hold, beside what ``PairData`` reads, ``intent`` and ``slots`` ({type: value or values}, or a list of
    [type, value]). A row about which nothing can be asked is left out.

    Args:
        schema: a schema file, or the name of one that is shipped: slurp, barista, fluent_speech_commands, snips ...
        framing: ``choice`` asks for the intent among all, ``yesno`` about each intent.
        intent_field: where a row's intent stands; A+B joins two fields with _.
        absent: slots that an utterance lacks asked about, as a multiple of those that it has.
        no: other intents asked about (``yesno``).
        held_out: intents and slots that are never asked about: what is tested with them is zero-shot.
        transcribe: a question whose answer is the row's ``transcript``, asked beside the others; None: none.
        more: those of ``PairData``.
    """

    def __init__(
        self,
        schema: str,
        framing: Framing = "choice",
        intent_field: str = "intent",
        absent: float = 1.0,
        no: float = 1.0,
        held_out: list[str] | None = None,
        transcribe: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        if absent < 0 or no < 0:
            raise InputError(f"data.absent {absent}, data.no {no}: give numbers from 0 on")
        self.schema = schema
        read, aside = read_schema(schema), tuple(held_out or ())
        self.asks = Asking(read, framing, intent_field, absent, no, aside, transcribe)

    @property
    def asking(self) -> Asking:
        """What is asked."""
        assert isinstance(self.asks, Asking)
        return self.asks

    def look_through(self, rows: Rows) -> None:
        """Rows that the schema does not know are faults; those about which nothing can be asked are left out."""
        kept: list[int] = []
        for place, example in enumerate(rows.examples):
            try:
                gold = read_gold(values(example), self.asking.intent_field)
                wrong = faults(self.asking.schema, gold)
            except InputError as error:
                wrong = [str(error)]
            if wrong:
                rows.faults.append(example.fault("; ".join(wrong)))
            elif self.asking(example, None):
                kept.append(place)
        rows.examples = [rows.examples[place] for place in kept]
        rows.order = [rows.order[place] for place in kept]
