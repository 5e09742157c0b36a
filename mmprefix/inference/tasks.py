"""Tasks, each as a function of a batch: texts, scores of answers, log odds of two, intent and slots, features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.batches.neighbours import NeighbourChoice
from mmprefix.mappers.base import join_layers
from mmprefix.model import PrefixLM
from mmprefix.saved_model import Detection, ModelSettings, Understanding
from mmprefix.slu.answering import answer_batch
from mmprefix.slu.questions import Framing, build_questions
from mmprefix.slu.schema import Schema, read_schema
from mmprefix.types import Batch, Candidate, DeepPrefix, MixedPrefix, split_side, to_list

Result = TypeVar("Result")
Compute: TypeAlias = Callable[[Batch], list[Result]]  # a batch → a result an input


@dataclass(frozen=True)
class InputFeatures:
    """Features of one input, for a policy or a classifier; float32, in main memory.

    Args:
        prefix: what the mappers make of it, (P E); of a deep prefix keys and values (P 2*L*H*K), where there are
            embeddings these alone. Terms beside the cache, as of a gated adapter, are the task's, and left out.
        summaries: summary (G,) of each encoder that has one, by branch.
    """

    prefix: Tensor
    summaries: dict[str, Tensor]


def reading(model: PrefixLM) -> Compute[InputFeatures]:
    """Prefix and encoders' summaries of each input, without the decoder."""

    def compute(batch: Batch) -> list[InputFeatures]:
        features = model.features(batch.inputs)
        prefix, _ = split_side(model.build_prefix(features, batch.absent, len(batch)))
        prefix = prefix.soft if isinstance(prefix, MixedPrefix) else prefix
        vectors = (join_layers(prefix) if isinstance(prefix, DeepPrefix) else prefix.embeds).float().cpu()
        mask = prefix.mask.cpu()
        pooled = {name: value.pooled.float().cpu() for name, value in features.items() if value.pooled.shape[1]}
        return [InputFeatures(vectors[b, mask[b]], {n: v[b] for n, v in pooled.items()}) for b in range(len(batch))]

    return compute


def captioning(
    model: PrefixLM, options: GenerateOptions, choice: NeighbourChoice | None = None
) -> Compute[list[Candidate]]:
    """Texts and scores of each input, the best first; by ``choice``, where there is one."""
    if choice is None:
        return lambda batch: model.generate(batch, options)
    return lambda batch: choice.best(batch, model.generate(batch, options))


def writing(
    model: PrefixLM, options: GenerateOptions, choice: NeighbourChoice | None = None
) -> Callable[[Batch], Iterator[str]]:
    """Pieces of the text of a batch of one input. Raises InputError for a ``choice``: it needs whole texts."""
    if choice is not None:
        raise InputError(
            "stream: neighbours choose among whole texts, and a stream is one text; give agreement=0 (--agreement 0), "
            "or do not stream"
        )
    return lambda batch: model.decoder.stream(model.prefill(batch), model.prompts(batch), options)


def choosing(model: PrefixLM, choices: Sequence[str]) -> Compute[dict[str, float]]:
    """Log-probability of each of ``choices`` for each input, renormalized over them."""
    allowed = [choices] if isinstance(choices, str) else list(choices)
    if len(allowed) < 2:
        raise InputError(f"choices {allowed}: give two or more")

    def compute(batch: Batch) -> list[dict[str, float]]:
        prompts = model.prompts(batch)
        state = model.decoder.append_prompts(model.prefill(batch), prompts)
        scores: Tensor = model.decoder.score_choices(state, prompts, allowed)  # (B C)
        return [dict(zip(allowed, row, strict=True)) for row in to_list(scores)]

    return compute


def detecting(model: PrefixLM, answers: tuple[str, str]) -> Compute[float]:
    """Log odds of the first of two answers against the second, for each input."""
    choose, (first, second) = choosing(model, answers), answers
    return lambda batch: [row[first] - row[second] for row in choose(batch)]


def answers_of(settings: ModelSettings, answers: Sequence[str] | None) -> tuple[str, str]:
    """Two answers of a call, by default those of the model's training. Raises InputError if there are none."""
    words = answers or (settings.task.answers if isinstance(settings.task, Detection) else ())
    if len(words) != 2:
        raise InputError("answers: this model has none of its own; give two words, the first for what is detected")
    return words[0], words[1]


def understanding(
    model: PrefixLM, schema: Schema, *, framing: Framing, options: GenerateOptions
) -> Compute[dict[str, Any]]:
    """Intent and slots, {"intent", "slots", "scores"} for each input; see ``mmprefix.slu.questions.parse_answers``."""
    questions = build_questions(schema, framing)
    return lambda batch: answer_batch(model, batch, schema, questions=questions, options=options)


def understanding_of(
    model: PrefixLM, settings: ModelSettings, schema: str | Path | Schema | None, framing: Framing | None
) -> Compute[dict[str, Any]]:
    """``understanding`` with schema and framing of a call, or those of the model's training."""
    asked, framing = schema_of(settings, schema), framing_of(settings, framing)
    return understanding(model, asked, framing=framing, options=settings.generate)


def schema_of(settings: ModelSettings, schema: str | Path | Schema | None) -> Schema:
    """Schema of a call, by default that of the model's training. Raises InputError if there is none."""
    if isinstance(schema, Schema):
        return schema
    trained = settings.task.schema if isinstance(settings.task, Understanding) else None
    source = trained if schema is None else schema
    if source is None:
        raise InputError("schema: this model was trained without one; give a file or the name of a shipped schema")
    return read_schema(source)


def framing_of(settings: ModelSettings, framing: Framing | None) -> Framing:
    """Framing of a call, by default that of the model's training, or else "choice"."""
    trained = settings.task.framing if isinstance(settings.task, Understanding) else None
    return framing or cast(Framing, trained or "choice")
