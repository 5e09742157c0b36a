"""Spoken language understanding as question answering: a schema → questions, answers → intent and slots.

After Li, Keizer and Doddipatla 2024 (https://arxiv.org/abs/2406.15209), who ask a frozen Whisper about each label in
words, so that a label unseen in training needs only a question. Details that the paper leaves open are chosen here:
one question about the intent, answered by one of all intents ("choice"), or one about each intent, answered by yes or
no ("yesno"); then one about each slot, answered by the schema's word for absence where the slot is not mentioned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from mmprefix.errors import InputError
from mmprefix.slu.annotation import Annotation as Annotation
from mmprefix.slu.annotation import join_values, schema_errors, split_values
from mmprefix.slu.annotation import read_annotation as read_annotation
from mmprefix.slu.schema import Label, Schema, fold, known

if TYPE_CHECKING:
    from numpy.random import Generator

Framing = Literal["choice", "yesno"]


@dataclass(frozen=True)
class Question:
    """Question about an utterance: its kind, the intent or slot it asks about, and its choices (None: any text)."""

    kind: Literal["intent", "slot", "yesno"]
    label: str | None
    text: str
    choices: tuple[str, ...] | None


class Answer(NamedTuple):
    """Answer to a question: its text and log-probability, and the log-probability of each choice (None: unknown)."""

    question: Question
    text: str
    score: float
    choices: Mapping[str, float] | None


def build_questions(schema: Schema, framing: Framing = "choice") -> list[Question]:
    """All questions about one utterance, each in its first phrasing: about the intent, then about each slot.

    "choice" has no question about the intent where the schema has fewer than two. Raises InputError for an unknown
    framing.
    """
    _check_framing(framing)
    if framing == "yesno":
        about = [_yesno(schema, label, None) for label in schema.intents.values()]
    else:
        about = [_choice(schema, list(schema.intents), None)] if len(schema.intents) > 1 else []
    return about + [_slot(schema, label, None) for label in schema.slots.values()]


def sample_question_answers(
    schema: Schema,
    gold: Annotation,
    framing: Framing,
    rng: Generator | None,
    *,
    absent: float = 1.0,
    no: float = 1.0,
    held_out: Collection[str] = (),
) -> list[tuple[Question, str]]:
    """Draw the questions that a training asks about one utterance, with their true answers.

    Every slot that the utterance has gets a question; of the slots that it lacks and its intent may have, ``rng`` draws
    ``absent`` times as many (times one where it has none). "yesno" asks about the true intent and about ``no`` others.
    A fraction is the probability of one more question. ``rng`` also draws the phrasing; None takes the first, and asks
    about all of these labels. Intents and slots in ``held_out`` are neither asked about nor among the choices.

    Raises InputError where ``gold`` or ``held_out`` does not fit the schema, and for an unknown framing.
    """
    _check_framing(framing)
    for message in schema_errors(schema, gold):
        raise InputError(message)
    for name in held_out:
        if name not in schema.intents and name not in schema.slots:
            raise InputError(
                f"held_out: schema {schema.name} has no {name!r}{known(name, [*schema.intents, *schema.slots])}"
            )
    offered = [name for name in schema.intents if name not in held_out]
    if framing == "yesno":
        pairs = _yesno_pairs(schema, gold.intent, offered, no=no, rng=rng)
    elif gold.intent in offered and len(offered) > 1:
        pairs = [(_choice(schema, offered, rng), schema.intents[gold.intent].answer)]
    else:
        pairs = []
    allowed = schema.slots_of(gold.intent)
    slots = [name for name in schema.slots if name in allowed and name not in held_out]
    missing = [name for name in slots if name not in gold.slots]
    drawn = {*gold.slots, *_draw(missing, absent * max(1, len(slots) - len(missing)), rng)}
    for name in slots:
        if name in drawn:
            pairs.append((_slot(schema, schema.slots[name], rng), join_values(gold.slots.get(name, (schema.none,)))))
    return pairs


def parse_answers(schema: Schema, answers: Sequence[Answer]) -> dict[str, Any]:
    """Intent and slots: {"intent": name or None, "slots": {type: value or list of values}, "scores": {...}}.

    "scores" holds under "intent" for each intent the log-probability of its answer, or its log odds of yes against no,
    and under "slots" for each slot the log-probability of its answer.

    "yesno": the intent with the highest log odds; without log-probabilities of the choices, the one with the highest
    score among those answered by yes. A schema's only intent needs no question. A slot is left out where the answer is
    empty or means absence, where it is not among the slot's ``values``, and where the intent has no such slot.
    """
    intent, odds = _intent(schema, [answer for answer in answers if answer.question.kind != "slot"])
    allowed = schema.slots_of(intent)
    slots: dict[str, str | list[str]] = {}
    scores: dict[str, float] = {}
    for question, text, score, _ in answers:
        if question.kind == "slot" and question.label:
            values = _values(schema, schema.slots[question.label], text)
            scores[question.label] = float(score)
            if values and question.label in allowed:
                slots[question.label] = values[0] if len(values) == 1 else values
    return {"intent": intent, "slots": slots, "scores": {"intent": odds, "slots": scores}}


def to_slurp(understood: Mapping[str, Any], schema: Schema, identifier: str | int) -> dict[str, Any]:
    """SLURP's record of an understood utterance (see ``parse_answers``).

    Its keys are "file" (an ``identifier`` that ends like a file name) or "slurp_id", "scenario" and "action" (both
    empty without an intent), and "entities", in lower case as in SLURP. Raises InputError where the schema has no
    scenario and action for the intent.
    """
    label = None if understood["intent"] is None else schema.intents[understood["intent"]]
    if label is not None and (label.scenario is None or label.action is None):
        advice = "give scenario and action in the schema, or split_intents: true"
        raise InputError(f"schema {schema.name}: intent {label.name!r} has no scenario and no action; {advice}")
    ending = PurePath(str(identifier)).suffix[1:]
    entities = [
        {"type": name, "filler": value.lower()}
        for name, values in understood["slots"].items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return {
        "file" if ending and not ending.isdigit() else "slurp_id": identifier,
        "scenario": label.scenario if label else "",
        "action": label.action if label else "",
        "entities": entities,
    }


# ------------------------------------------------------------------------------------------------------- questions


def _check_framing(framing: str) -> None:
    if framing not in get_args(Framing):
        raise InputError(f"framing {framing!r}: use one of {', '.join(get_args(Framing))}")


def _choice(schema: Schema, names: list[str], rng: Generator | None) -> Question:
    answers = tuple(schema.intents[name].answer for name in names)
    return Question("intent", None, _phrase(schema.intent_questions, rng), answers)


def _yesno(schema: Schema, label: Label, rng: Generator | None) -> Question:
    return Question("yesno", label.name, _phrase(label.questions, rng), (schema.yes, schema.no))


def _slot(schema: Schema, label: Label, rng: Generator | None) -> Question:
    choices = (*label.values, schema.none) if label.values else None
    return Question("slot", label.name, _phrase(label.questions, rng), choices)


def _yesno_pairs(
    schema: Schema, true: str | None, offered: list[str], *, no: float, rng: Generator | None
) -> list[tuple[Question, str]]:
    """Questions about intents: none where the true intent is unknown, answered only by no where it is held out."""
    if true is None:
        return []
    drawn = {true, *_draw([name for name in offered if name != true], no, rng)}
    questions = [(name, _yesno(schema, schema.intents[name], rng)) for name in offered if name in drawn]
    return [(question, schema.yes if name == true else schema.no) for name, question in questions]


def _phrase(texts: tuple[str, ...], rng: Generator | None) -> str:
    return texts[0 if rng is None else int(rng.integers(len(texts)))]


def _draw(names: list[str], number: float, rng: Generator | None) -> list[str]:
    """Draw ``number`` of ``names`` on average, at most all of them; all without ``rng``."""
    if rng is None:
        return names
    count = min(len(names), int(number) + int(rng.random() < number % 1))
    return [names[i] for i in rng.choice(len(names), count, replace=False)]


def _intent(schema: Schema, answers: Sequence[Answer]) -> tuple[str | None, dict[str, float]]:
    """Intent of the answers about intents (None: unknown), and the score of each intent."""
    only = next(iter(schema.intents)) if len(schema.intents) == 1 else None
    scores: dict[str, float] = {}
    for question, text, score, choices in answers:
        if question.label is None:
            names = {fold(label.answer): name for name, label in schema.intents.items()}
            choices = {text: score} if choices is None else choices
            scores = {names[fold(key)]: float(value) for key, value in choices.items() if fold(key) in names}
            return names.get(fold(text)), scores
        if choices is not None:
            scores[question.label] = float(choices[schema.yes]) - float(choices[schema.no])
        elif fold(text) == fold(schema.yes):
            scores[question.label] = float(score)
    return max(scores, key=lambda name: scores[name], default=None if answers else only), scores


def _values(schema: Schema, label: Label, text: str) -> list[str]:
    """Values in an answer about a slot; for a slot with a list of values in the list's spelling."""
    values = [value for value in split_values(text) if fold(value) not in ("", fold(schema.none))]
    if not label.values:
        return values
    listed = {fold(value): value for value in label.values}
    return [listed[fold(value)] for value in values if fold(value) in listed]
