"""Spoken language understanding as questions and answers: a schema → questions, answers → intent and slots.

After Li, Keizer and Doddipatla 2024 (https://arxiv.org/abs/2406.15209), who ask a frozen Whisper about each label in
words, so that a label which no training has seen needs no more than a question. What they left open is chosen here: one
question about the intent whose answer is chosen from all intents ("choice"), or one about each intent with the answer
yes or no ("yesno"); then one about each slot, answered with the schema's word for absence where it is not mentioned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, get_args

from mmprefix.errors import InputError
from mmprefix.slu.annotation import Annotation as Annotation
from mmprefix.slu.annotation import join_values, schema_errors, split_values
from mmprefix.slu.annotation import read_annotation as read_annotation
from mmprefix.slu.schema import Label, Schema, fold, known

if TYPE_CHECKING:
    from numpy.random import Generator

Framing = Literal["choice", "yesno"]
Answer = tuple["Question", str, float, Mapping[str, float] | None]


@dataclass(frozen=True)
class Question:
    """One question about an utterance: the intent or slot that it is about, and its possible answers (None: any)."""

    kind: Literal["intent", "slot", "yesno"]
    label: str | None
    text: str
    choices: tuple[str, ...] | None


def build_questions(schema: Schema, framing: Framing = "choice") -> list[Question]:
    """All questions about one utterance, each in its first phrasing: about the intent, then about each slot.

    "choice" asks nothing about the intent where the schema has fewer than two. Raises InputError for another framing.
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
    absent: float = 1.0,
    no: float = 1.0,
    held_out: Collection[str] = (),
) -> list[tuple[Question, str]]:
    """What a training asks about one utterance, with the true answers.

    Every slot that it has is asked about; of those that it has not, ``absent`` times as many (as if it had one where it
    has none) are drawn by ``rng``. "yesno" asks about the true intent and about ``no`` others. Fractions are kept on
    average. ``rng`` also draws a phrasing; None takes the first, and asks about all labels. Intents and slots in
    ``held_out`` are neither asked about nor offered.

    Raises InputError where the schema does not know what ``gold`` or ``held_out`` names, or for another framing.
    """
    _check_framing(framing)
    for fault in schema_errors(schema, gold):
        raise InputError(fault)
    for name in held_out:
        if name not in schema.intents and name not in schema.slots:
            raise InputError(
                f"held_out: schema {schema.name} has no {name!r}{known(name, [*schema.intents, *schema.slots])}"
            )
    offered = [name for name in schema.intents if name not in held_out]
    if framing == "yesno":
        found = _yesno_pairs(schema, gold.intent, offered, no, rng)
    elif gold.intent in offered and len(offered) > 1:
        found = [(_choice(schema, offered, rng), schema.intents[gold.intent].answer)]
    else:
        found = []
    seen = [name for name in schema.slots if name not in held_out]
    missing = [name for name in seen if name not in gold.slots]
    asked = {*gold.slots, *_some(missing, absent * max(1, len(seen) - len(missing)), rng)}
    for name in seen:
        if name in asked:
            found.append((_slot(schema, schema.slots[name], rng), join_values(gold.slots.get(name, (schema.none,)))))
    return found


def parse_answers(schema: Schema, answers: Sequence[Answer]) -> dict[str, Any]:
    """What the answers to ``ask`` say: {"intent": name or None, "slots": {type: value or list of values}, "scores"}.

    An answer is (question, text, log-probability of the text, log-probability of each choice or None). "scores" holds
    for "intent" the log-probability of each one's answer, or its log odds of yes against no, and for "slots" the
    log-probability of each one's answer.

    Yes or no: the intent with the highest log odds; without log-probabilities of the choices, of those answered with
    yes the one with the highest score. A schema's only intent need not be asked about. A slot is left out where the
    answer is empty or means absence, where it is not among the slot's ``values``, or where the intent has no such slot.
    """
    intent, odds = _intent(schema, [answer for answer in answers if answer[0].kind != "slot"])
    takes = schema.slots_of(intent)
    slots: dict[str, str | list[str]] = {}
    scores: dict[str, float] = {}
    for question, text, score, _ in answers:
        if question.kind == "slot" and question.label:
            values = _values(schema, schema.slots[question.label], text)
            scores[question.label] = float(score)
            if values and question.label in takes:
                slots[question.label] = values[0] if len(values) == 1 else values
    return {"intent": intent, "slots": slots, "scores": {"intent": odds, "slots": scores}}


def to_slurp(understood: Mapping[str, Any], schema: Schema, id: str | int) -> dict[str, Any]:
    """SLURP's record of what ``understand`` found: "file" (an ``id`` that ends like a file) or "slurp_id", "scenario",
    "action" (both empty without an intent), and "entities", whose words are in lower case as SLURP's own are.

    Raises InputError where the schema has no scenario and action for the intent.
    """
    label = None if understood["intent"] is None else schema.intents[understood["intent"]]
    if label is not None and (label.scenario is None or label.action is None):
        advice = "give scenario and action in the schema, or split_intents: true"
        raise InputError(f"schema {schema.name}: intent {label.name!r} has no scenario and no action; {advice}")
    ending = PurePath(str(id)).suffix[1:]
    entities = [
        {"type": name, "filler": value.lower()}
        for name, values in understood["slots"].items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return {
        "file" if ending and not ending.isdigit() else "slurp_id": id,
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
    schema: Schema, true: str | None, offered: list[str], no: float, rng: Generator | None
) -> list[tuple[Question, str]]:
    """Of an utterance whose intent is not known nothing is asked; one with an intent that is held out has only no."""
    if true is None:
        return []
    asked = {true, *_some([name for name in offered if name != true], no, rng)}
    found = [(name, _yesno(schema, schema.intents[name], rng)) for name in offered if name in asked]
    return [(question, schema.yes if name == true else schema.no) for name, question in found]


def _phrase(texts: tuple[str, ...], rng: Generator | None) -> str:
    return texts[0 if rng is None else int(rng.integers(len(texts)))]


def _some(names: list[str], number: float, rng: Generator | None) -> list[str]:
    """``number`` of ``names`` on average, but not more than there are; all of them without ``rng``."""
    if rng is None:
        return names
    count = min(len(names), int(number) + int(rng.random() < number % 1))
    return [names[i] for i in rng.choice(len(names), count, replace=False)]


def _intent(schema: Schema, answers: Sequence[Answer]) -> tuple[str | None, dict[str, float]]:
    """The intent that the answers about intents name, and the score of each."""
    chosen = next(iter(schema.intents)) if len(schema.intents) == 1 else None
    scores: dict[str, float] = {}
    for question, text, score, choices in answers:
        if question.label is None:
            names = {fold(label.answer): name for name, label in schema.intents.items()}
            given = {text: score} if choices is None else choices
            scores = {names[fold(key)]: float(value) for key, value in given.items() if fold(key) in names}
            return names.get(fold(text)), scores
        if choices is not None:
            scores[question.label] = float(choices[schema.yes]) - float(choices[schema.no])
        elif fold(text) == fold(schema.yes):
            scores[question.label] = float(score)
    return max(scores, key=lambda name: scores[name], default=None if answers else chosen), scores


def _values(schema: Schema, label: Label, text: str) -> list[str]:
    """The values that an answer about a slot holds; of a closed list in the list's own spelling."""
    found = [value for value in split_values(text) if fold(value) not in ("", fold(schema.none))]
    if not label.values:
        return found
    listed = {fold(value): value for value in label.values}
    return [listed[fold(value)] for value in found if fold(value) in listed]
