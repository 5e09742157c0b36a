"""All questions of a schema asked about a batch of inputs, and what their answers mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmprefix.generation.options import GenerateOptions
from mmprefix.model import PrefixLM
from mmprefix.slu.questions import Answer, Question, parse_answers
from mmprefix.slu.schema import Schema
from mmprefix.types import Batch


def answer_batch(
    model: PrefixLM, batch: Batch, schema: Schema, questions: Sequence[Question], options: GenerateOptions
) -> list[dict[str, Any]]:
    """For each input its intent and slots with scores; see ``mmprefix.slu.questions.understand``.

    What is heard and the prompt are read once; each question then continues from there. A question with choices is
    answered by the likeliest of them, others by the search that ``options`` ask for.
    """
    decoder, prompts = model.decoder, model.prompts(batch)
    opened = decoder.append_prompts(model.prefill(batch), prompts)
    answers: list[list[Answer]] = [[] for _ in prompts]
    for question in questions:
        asked = [model.wording.render_question(question.text)] * len(prompts)
        if question.choices is None:
            written = decoder.generate_from(decoder.append_questions(opened, prompts, asked), options)
            for found, candidates in zip(answers, written, strict=True):
                found.append((question, candidates[0].text, candidates[0].score, None))
            continue
        choices = list(question.choices)
        for found, row in zip(answers, decoder.score_choices(opened, prompts, choices, asked).tolist(), strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            found.append((question, choices[best], row[best], dict(zip(choices, row, strict=True))))
    return [parse_answers(schema, found) for found in answers]
