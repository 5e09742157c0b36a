"""Data module of spoken language understanding: questions and answers from rows with intent and slots, by a schema."""

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
    """Questions and answers of a manifest's row in training; see ``mmprefix.slu.questions.sample_question_answers``."""

    schema: Schema
    framing: Framing
    intent_field: str
    absent: float
    no: float
    held_out: tuple[str, ...]
    transcribe: str | None

    def __call__(self, example: Example, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Draw questions with their answers."""
        pairs = [(question.text, answer) for question, answer in self._pairs(example, rng)]
        return pairs + self._transcript(example)

    def has_questions(self, example: Example) -> bool:
        """True where some epoch may ask a question about the row."""
        never = [("slot", self.schema.none)] if not self.absent else []
        never += [("yesno", self.schema.no)] if not self.no else []
        kinds = [(question.kind, answer) for question, answer in self._pairs(example, None)]
        return any(kind not in never for kind in kinds) or bool(self._transcript(example))

    def _pairs(self, example: Example, rng: np.random.Generator | None) -> list[tuple[Question, str]]:
        gold = read_annotation(row_fields(example), self.intent_field)
        return sample_question_answers(
            self.schema, gold, self.framing, rng, absent=self.absent, no=self.no, held_out=self.held_out
        )

    def _transcript(self, example: Example) -> list[tuple[str, str]]:
        text = row_fields(example).get("transcript")
        return [(self.transcribe, text)] if self.transcribe and isinstance(text, str) and text.strip() else []


class QuestionData(PairData):
    """Questions and answers about utterances with intents and slots, in speech or text, by a schema.

    Manifests hold the columns of ``PairData``, and ``intent`` and ``slots`` ({type: value or values}, or a list of
    [type, value]). A row without any question to ask is left out.

    Args:
        schema: schema file, or name of a shipped one: slurp, barista, fluent_speech_commands, snips ...
        framing: ``choice`` asks for the intent among all, ``yesno`` asks about each intent.
        intent_field: column of a row's intent; A+B joins two columns with _.
        absent: number of questions about slots that an utterance lacks, as a multiple of the slots that it has.
        no: number of questions about intents that an utterance does not have (``yesno``).
        held_out: intents and slots without any question in training; a test with them is zero-shot.
        slots: False asks about intents alone, in training and by the saved model.
        transcribe: additional question whose answer is the row's ``transcript``; None: none.
        more: options of ``PairData``.
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
        slots: bool = True,
        transcribe: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        if absent < 0 or no < 0:
            raise InputError(f"data.absent {absent}, data.no {no}: give numbers from 0 on")
        for name in ("target", "max_captions", "max_tokens"):
            value = self.columns.target if name == "target" else getattr(self, name)
            if value is not None:
                raise InputError(
                    f"data.{name} {value}: cannot be used here, the schema gives the answers; leave it out"
                )
        self.schema, self.framing, self.slots = schema, framing, slots
        labels = read_schema(schema)
        hidden = (*(held_out or ()), *(() if slots else labels.slots))
        sample_question_answers(labels, Annotation(None, {}), framing, None, held_out=hidden)  # refuses wrong options
        self.question_sampler = QuestionSampler(labels, framing, intent_field, absent, no, hidden, transcribe)
        self.sample_questions = self.question_sampler

    def filter_rows(self, rows: DatasetIndex) -> None:
        """Report rows that do not fit the schema as faults, and leave out rows without any question to ask."""
        schema, field = self.question_sampler.schema, self.question_sampler.intent_field
        kept: list[int] = []
        intents = 0
        for at, example in enumerate(rows.examples):
            try:
                gold = read_annotation(row_fields(example), field)
                messages, intents = schema_errors(schema, gold), intents + (gold.intent is not None)
            except InputError as error:
                messages = [str(error)]
            if messages:
                rows.faults.append(example.fault("; ".join(messages)))
            elif self.question_sampler.has_questions(example):
                kept.append(at)
        count = len(rows.examples)
        if rows.examples and not intents and len(schema.intents) > 1:
            log.warning("no row has an intent in the field %r (data.intent_field): no question asks about one", field)
        if len(kept) < count:
            log.info("%d of %d rows left out: no question to ask about them", count - len(kept), count)
        rows.examples = [rows.examples[at] for at in kept]
        rows.keys = [rows.keys[at] for at in kept]
        rows.faults.sort(key=lambda fault: (fault.file, fault.line))

    def task_settings(self) -> dict[str, Any]:
        """Schema and framing, for the settings of the saved model."""
        return {"schema": portable(self.schema, slots=self.slots), "framing": self.framing}

    def fingerprint(self, examples: list[Example], world: int) -> dict[str, Any]:
        golds = "\n".join(str(read_annotation(row_fields(row), self.question_sampler.intent_field)) for row in examples)
        digest = hashlib.sha256(f"{self.question_sampler}\n{golds}".encode()).hexdigest()[:16]
        return {**super().fingerprint(examples, world), "questions": digest}
