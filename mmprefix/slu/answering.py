"""Understanding of a batch: ask all questions of a schema, turn the answers into intent and slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmprefix.generation.options import GenerateOptions
from mmprefix.model import PrefixLM
from mmprefix.slu.questions import Answer, Question, parse_answers
from mmprefix.slu.schema import Schema
from mmprefix.types import Batch, to_list


def answer_batch(
    model: PrefixLM, batch: Batch, schema: Schema, *, questions: Sequence[Question], options: GenerateOptions
) -> list[dict[str, Any]]:
    """Intent, slots and scores of each input, as ``mmprefix.slu.questions.parse_answers`` gives them.

    Prefix and prompt are prefilled once; each question continues from that cache. A question with choices is answered
    by the likeliest of them, any other by a search with ``options``.
    """
    decoder, prompts = model.decoder, model.prompts(batch)
    state = decoder.append_prompts(model.prefill(batch), prompts)
    answers: list[list[Answer]] = [[] for _ in prompts]
    for question in questions:
        texts = [model.wording.render_question(question.text)] * len(prompts)
        if question.choices is None:
            generated = decoder.generate_from(decoder.append_questions(state, prompts, texts), options)
            for answered, candidates in zip(answers, generated, strict=True):
                answered.append(Answer(question, candidates[0].text, candidates[0].score, None))
            continue
        choices = list(question.choices)
        scores = decoder.score_choices(state, prompts, choices, texts)  # (B C)
        for answered, row in zip(answers, to_list(scores), strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            answered.append(Answer(question, choices[best], row[best], dict(zip(choices, row, strict=True))))
    return [parse_answers(schema, answered) for answered in answers]
