"""Evaluation of one batch: losses with the own and with another input's prefix, texts, answers, log odds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmprefix.decoders.base import TextLoss
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import State
from mmprefix.model import PrefixLM
from mmprefix.training.report import NO_INPUT, ValidationRow
from mmprefix.types import Batch, to_list


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a model's batches.

    Args:
        model: the model in training.
        options: search options for texts and answers.
        answers: the word for what is to be detected and the word for its absence, whose log odds are scored; None:
            nothing is to be detected.
    """

    model: PrefixLM
    options: GenerateOptions
    answers: Sequence[str] | None = None

    def rows(self, batch: Batch) -> list[ValidationRow]:
        """A row for each input of ``batch``, or for each of its questions where it has any.

        The loss with the prefix of the batch's previous input tells how much the model makes of its input; a batch of
        one has none.
        """
        model, count = self.model, len(batch)
        decoder, prompts, questions = model.decoder, model.prompts(batch), model.questions(batch)
        state = model.prefill(batch)
        own, other = decoder.text_loss(state, prompts, batch.targets, questions), None
        if count > 1:
            turned = model.prompts(replace(batch, contexts=[batch.contexts[-1], *batch.contexts[:-1]]))
            other = decoder.text_loss(state.roll(1), turned, batch.targets, questions)
        prompted = decoder.append_prompts(state, prompts)
        groups, sources = _groups(model, batch), batch.sources or [""] * count
        if batch.questions:
            answers = self._answer(prompted, prompts, questions)
            return list(_question_rows(batch, groups, sources, own=own, other=other, answers=answers))
        closed = decoder.append_questions(prompted, prompts, [""] * count)
        texts = [candidates[0].text for candidates in decoder.generate_from(closed, self.options)]
        odds: list[float] | list[None] = [None] * count
        if self.answers is not None:
            scores = decoder.score_choices(prompted, prompts, list(self.answers))
            odds = to_list(scores[:, 0] - scores[:, 1])
        loss, shuffled = own.by_input(count), None if other is None else to_list(other.by_input(count).nll)
        columns = (batch.ids, groups, sources, texts, batch.targets, to_list(loss.nll), shuffled or [None] * count)
        return [ValidationRow(*values) for values in zip(*columns, to_list(loss.tokens), odds, strict=True)]

    def predictions(self, batch: Batch) -> list[dict[str, Any]]:
        """Line of ``predictions.jsonl`` for each input (see ``mmprefix.cli.inference.predictions``)."""
        model = self.model
        if not batch.questions:
            texts = [[asdict(candidate) for candidate in row] for row in model.generate(batch, self.options)]
            return [
                {"id": i, "prediction": row[0]["text"], "references": references, "candidates": row}
                for i, references, row in zip(batch.ids, batch.targets, texts, strict=True)
            ]
        prompts = model.prompts(batch)
        prompted = model.decoder.append_prompts(model.prefill(batch), prompts)
        answers = self._answer(prompted, prompts, model.questions(batch))
        columns = (batch.ids, batch.questions, answers, batch.targets)
        names = ("id", "questions", "answers", "references")
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def _answer(self, prompted: State, prompts: list[str], questions: list[list[str]]) -> list[list[str]]:
        """Answer to each question of each input; inputs answer their first questions together, then their second ..."""
        decoder, answers = self.model.decoder, [list[str]() for _ in questions]
        for number in range(max(map(len, questions))):
            texts = [row[min(number, len(row) - 1)] if row else "" for row in questions]
            results = decoder.generate_from(decoder.append_questions(prompted, prompts, texts), self.options)
            for row, asked, candidates in zip(answers, questions, results, strict=True):
                row += [candidates[0].text] if number < len(asked) else []
        return answers


def _groups(model: PrefixLM, batch: Batch) -> list[str]:
    """Kind of each input for the report: its branches and "text" where it has a context, joined by +."""
    texts = [["text"] if context and model.reads_text else [] for context in batch.contexts]
    return ["+".join([*batch.inputs, *text]) or NO_INPUT for text in texts]


def _question_rows(
    batch: Batch,
    groups: list[str],
    sources: list[str],
    *,
    own: TextLoss,
    other: TextLoss | None,
    answers: list[list[str]],
) -> Iterator[ValidationRow]:
    """A row for each question, in the order of the losses."""
    losses, tokens = iter(to_list(own.nll)), iter(to_list(own.tokens))
    shuffled = iter([None] * len(own.nll) if other is None else to_list(other.nll))
    for b, name in enumerate(batch.ids):
        for number, question in enumerate(batch.questions[b]):
            values = (f"{name} [{number + 1}] {question}", groups[b], sources[b], answers[b][number])
            yield ValidationRow(*values, [batch.targets[b][number]], next(losses), next(shuffled), next(tokens))
