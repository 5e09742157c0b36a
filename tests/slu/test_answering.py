"""Answers about a batch, against each question to each input alone: the loss of each choice, a search of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprefix.generation.options import GenerateOptions
from mmprefix.model import PrefixLM
from mmprefix.slu.answering import answer_batch
from mmprefix.slu.questions import Answer, Framing, Question, build_questions, parse_answers
from mmprefix.slu.schema import Schema, read_schema
from mmprefix.types import Batch
from tiny import slu_system as tiny_slu_system
from tiny.captioning_system import quietly
from tiny.slu_system import OPTIONS, SluSystem

pytestmark = quietly
TOLERANCE = 1e-4
TEXTS = ["the dog runs 0", "the bell runs, and a cat sits there", "rain"]
BEAM = GenerateOptions(max_new_tokens=4, num_beams=3, num_return=2)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> SluSystem:
    return tiny_slu_system.build(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="module")
def schema(system: SluSystem) -> Schema:
    return read_schema(system.path("home.yaml"))


@pytest.fixture(scope="module")
def model(system: SluSystem) -> PrefixLM:
    return system.text_model()


def batch_of(texts: list[str]) -> Batch:
    """Texts alone, each the context of its row."""
    return Batch({}, [""] * len(texts), [[]] * len(texts), texts, [str(n) for n in range(len(texts))])


def understood(
    model: PrefixLM, texts: list[str], schema: Schema, framing: Framing = "choice", **more: Any
) -> list[Any]:
    questions = more.pop("questions", None) or build_questions(schema, framing)
    return answer_batch(model, batch_of(texts), schema, questions=questions, options=more.get("options", OPTIONS))


@torch.no_grad()
def answer_alone(model: PrefixLM, text: str, question: Question, options: GenerateOptions) -> Answer:
    """Answer of one input to one question that stands in its prompt: no batch, and no state shared by questions."""
    batch = batch_of([text])
    (prompt,) = [before + model.wording.render_question(question.text) for before in model.prompts(batch)]
    if question.choices is None:
        (best, *_) = model.decoder.generate(model.prefill(batch), [prompt], options)[0]
        return Answer(question, best.text, best.score, None)
    losses = [model.decoder.text_loss(model.prefill(batch), [prompt], [[choice]]).nll for choice in question.choices]
    scores = torch.stack(losses).neg().flatten().log_softmax(0).tolist()
    logs = dict(zip(question.choices, scores, strict=True))
    best = max(logs, key=lambda choice: logs[choice])
    return Answer(question, best, logs[best], logs)


def assert_same(results: list[Any], expected: list[Any]) -> None:
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        assert (result["intent"], result["slots"]) == (other["intent"], other["slots"])
        for kind in ("intent", "slots"):
            assert result["scores"][kind] == pytest.approx(other["scores"][kind], abs=TOLERANCE)


@pytest.mark.parametrize("options", [OPTIONS, BEAM], ids=["greedy", "beams"])
@pytest.mark.parametrize("framing", ["choice", "yesno"])
def test_a_batch_is_answered_as_each_question_alone(
    model: PrefixLM, schema: Schema, framing: Framing, options: GenerateOptions
) -> None:
    questions = build_questions(schema, framing)
    expected = [
        parse_answers(schema, [answer_alone(model, text, question, options) for question in questions])
        for text in TEXTS
    ]
    results = understood(model, TEXTS, schema, framing, options=options)
    assert_same(results, expected)
    scores = [result["scores"] for result in results]
    assert scores[0]["intent"] != pytest.approx(scores[1]["intent"], abs=10 * TOLERANCE)  # rows are not mixed up
    assert set(scores[0]["intent"]) == set(schema.intents)
    assert set(scores[0]["slots"]) == set(schema.slots)


def test_no_question_changes_the_answer_to_another(model: PrefixLM, schema: Schema) -> None:
    """Each continues from the prompt: their order and number do not count, and a question may come twice."""
    questions = build_questions(schema)
    expected = understood(model, TEXTS, schema)
    assert_same(understood(model, TEXTS, schema, questions=questions[::-1]), expected)
    assert_same(understood(model, TEXTS, schema, questions=[*questions, questions[-1]]), expected)
    slots = understood(model, TEXTS, schema, questions=questions[1:])
    assert [result["scores"]["slots"] for result in slots] == [
        pytest.approx(result["scores"]["slots"], abs=TOLERANCE) for result in expected
    ]
    assert {result["intent"] for result in slots} == {None}


def test_probabilities_of_choices_sum_to_one(model: PrefixLM, schema: Schema) -> None:
    for result in understood(model, TEXTS, schema):
        assert torch.tensor(list(result["scores"]["intent"].values())).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_likeliest_choice_is_the_answer_wherever_it_stands(model: PrefixLM, schema: Schema) -> None:
    """Choices in another order have the same scores, and the same one wins: the index is not that of another order."""
    first, *rest = build_questions(schema)
    assert first.choices is not None
    turned = replace(first, choices=first.choices[::-1])
    expected = understood(model, TEXTS, schema)
    assert_same(understood(model, TEXTS, schema, questions=[turned, *rest]), expected)
    for result in expected:
        scores = result["scores"]["intent"]
        assert result["intent"] == max(scores, key=lambda name: scores[name])


def test_a_whisper_is_asked_about_sounds(system: SluSystem, schema: Schema) -> None:
    """Sounds of unlike lengths in one batch, behind a deep prefix, against each alone."""
    from mmprefix.data.collate import pad_media

    model = system.whisper_model()
    load = model.encoder("audio").preprocess
    sounds = [load(file, 0.0, None) for file in system.sounds[:3]]

    def ask(part: list[Any]) -> list[Any]:
        batch = replace(batch_of([""] * len(part)), inputs={"audio": pad_media(part)})
        return answer_batch(model, batch, schema, questions=build_questions(schema), options=OPTIONS)

    together = ask(sounds)
    assert_same(together, [result for sound in sounds for result in ask([sound])])
    assert_same(ask(sounds[::-1]), together[::-1])


def test_no_questions(model: PrefixLM, schema: Schema, tmp_path: Path) -> None:
    nothing = {"intent": None, "slots": {}, "scores": {"intent": {}, "slots": {}}}
    results = answer_batch(model, batch_of(TEXTS), schema, questions=[], options=OPTIONS)
    assert results == [nothing] * len(TEXTS)
