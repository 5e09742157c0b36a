"""Data of spoken language understanding: rows with intent and slots become questions with answers, by a schema."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmprefix.data.columns import row_fields
from mmprefix.data.index import DatasetIndex
from mmprefix.data.manifest import Example
from mmprefix.data.pairs import PairData
from mmprefix.errors import InputError
from mmprefix.slu.annotation import Annotation, read_annotation, schema_errors
from mmprefix.slu.questions import Framing, Question, sample_question_answers
from mmprefix.slu.schema import Schema, portable, read_schema

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuestionSampler:
    """What a training asks about a row of a manifest; see ``mmprefix.slu.questions.pairs``."""

    schema: Schema
    framing: Framing
    intent_field: str
    absent: float
    no: float
    held_out: tuple[str, ...]
    transcribe: str | None

    def __call__(self, example: Example, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Questions and answers."""
        said = [(question.text, answer) for question, answer in self._pairs(example, rng)]
        return said + self._transcript(example)

    def anything(self, example: Example) -> bool:
        """Whether there is anything that may be asked about the row, in one epoch or another."""
        never = [("slot", self.schema.none)] if not self.absent else []
        never += [("yesno", self.schema.no)] if not self.no else []
        asked = [(question.kind, answer) for question, answer in self._pairs(example, None)]
        return any(one not in never for one in asked) or bool(self._transcript(example))

    def _pairs(self, example: Example, rng: np.random.Generator | None) -> list[tuple[Question, str]]:
        gold = read_annotation(row_fields(example), self.intent_field)
        return sample_question_answers(self.schema, gold, self.framing, rng, self.absent, self.no, self.held_out)

    def _transcript(self, example: Example) -> list[tuple[str, str]]:
        said = row_fields(example).get("transcript")
        return [(self.transcribe, said)] if self.transcribe and isinstance(said, str) and said.strip() else []


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
        *,
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
        for name in ("target", "max_captions", "max_tokens"):
            value = self.columns.target if name == "target" else getattr(self, name)
            if value is not None:
                raise InputError(f"data.{name} {value}: answers are written here, as the schema has them; leave it out")
        self.schema, self.framing = schema, framing
        read, aside = read_schema(schema), tuple(held_out or ())
        sample_question_answers(
            read, Annotation(None, {}), framing, None, held_out=aside
        )  # it knows framings, and the schema what is held out
        self.sample_questions = QuestionSampler(read, framing, intent_field, absent, no, aside, transcribe)

    @property
    def asking(self) -> QuestionSampler:
        """What is asked."""
        assert isinstance(self.sample_questions, QuestionSampler)
        return self.sample_questions

    def filter_rows(self, rows: DatasetIndex) -> None:
        """Rows that the schema does not know are faults; those about which nothing can be asked are left out."""
        schema, field = self.asking.schema, self.asking.intent_field
        kept: list[int] = []
        intents = 0
        for place, example in enumerate(rows.examples):
            try:
                gold = read_annotation(row_fields(example), field)
                wrong, intents = schema_errors(schema, gold), intents + (gold.intent is not None)
            except InputError as error:
                wrong = [str(error)]
            if wrong:
                rows.faults.append(example.fault("; ".join(wrong)))
            elif self.asking.anything(example):
                kept.append(place)
        if rows.examples and not intents and len(schema.intents) > 1:
            log.warning("no row has an intent in the field %r (data.intent_field): none is asked about", field)
        if len(kept) < len(rows.examples):
            log.info(
                "%d of %d rows left out: nothing is asked about them",
                len(rows.examples) - len(kept),
                len(rows.examples),
            )
        rows.examples = [rows.examples[place] for place in kept]
        rows.keys = [rows.keys[place] for place in kept]
        rows.faults.sort(key=lambda fault: (fault.file, fault.line))

    def task_settings(self) -> dict[str, Any]:
        """Schema and framing of a saved model that understands."""
        return {"schema": portable(self.schema), "framing": self.framing}

    def fingerprint(self, examples: list[Example], world: int) -> dict[str, Any]:
        meant = "\n".join(str(read_annotation(row_fields(row), self.asking.intent_field)) for row in examples)
        digest = hashlib.sha256(f"{self.asking}\n{meant}".encode()).hexdigest()[:16]
        return {**super().fingerprint(examples, world), "questions": digest}
