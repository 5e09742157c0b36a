"""One row → one sample: the choice of prompt, captions, context and questions, for manifests and for streamed shards.

Every choice is a function of seed, epoch and row number, so that all workers and all restarts choose alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mmprefix.data.histories import drawn_texts, earlier_texts
from mmprefix.data.manifest import Example
from mmprefix.prompt_template import PromptTemplate
from mmprefix.types import FeatureRow

SampleQuestions = Callable[[Example, np.random.Generator], list[tuple[str, str]]]
"""(row, generator) → questions with their answers."""


class Sample(NamedTuple):
    """One example, read: a waveform (S,), image (3 Y X), video (F 3 Y X) or features a branch, and its strings.

    ``questions`` is None where targets are captions. It is empty where a row has no question in this epoch.
    """

    inputs: dict[str, Tensor | FeatureRow]
    prompt: str
    targets: list[str]
    context: str
    id: str
    source: str
    questions: list[str] | None = None
    user: str = ""


@dataclass(frozen=True)
class SampleOptions:
    """Choices made for each row and epoch.

    Args:
        prompt: the prompt of rows that have none.
        max_captions: captions drawn from those of a row; None: all.
        seed: of all draws.
        training: draw anew each epoch. Otherwise every epoch is the first, and a row's first context is taken.
        sample_questions: draws questions and answers, which then are the targets; None: targets are captions.
        wording: of a prompt that holds earlier texts of a row's user; None: it holds none.
        history_dropout: probability that a row of training shows none of them.
    """

    prompt: str = ""
    max_captions: int | None = None
    seed: int = 0
    training: bool = True
    sample_questions: SampleQuestions | None = None
    wording: PromptTemplate | None = None
    history_dropout: float = 0.0


def sample_of_row(
    example: Example,
    inputs: dict[str, Tensor | FeatureRow],
    options: SampleOptions,
    *,
    row: int,
    epoch: int,
    source: str,
) -> Sample:
    """Sample of ``example``, which has number ``row``, in ``epoch``.

    ``inputs`` are what was read of it, by branch; ``source`` is the file that a report names.
    """
    seed = [options.seed, epoch, row]
    drawn = seed if options.training else [options.seed, 0, row]
    questions, targets = None, draw_captions(example.captions, options.max_captions, drawn)
    if options.sample_questions is not None:
        pairs = options.sample_questions(example, np.random.default_rng(drawn))
        questions, targets = [question for question, _ in pairs], [answer for _, answer in pairs]
    return Sample(
        inputs=inputs,
        prompt=options.prompt if example.prompt is None else example.prompt,
        targets=targets,
        context=_behind_history(example, _context(example, seed, options.training), options, seed),
        id=example.id,
        source=source,
        questions=questions,
        user=example.user or "",
    )


def draw_captions(captions: Sequence[str], most: int | None, seed: list[int]) -> list[str]:
    """At most ``most`` captions of a row, in their order; None: all."""
    if most is None or len(captions) <= most:
        return [*captions]
    drawn = np.random.default_rng(seed).choice(len(captions), most, replace=False)
    return [captions[int(number)] for number in sorted(drawn)]


def _context(example: Example, seed: list[int], training: bool) -> str:
    texts = [example.context, *example.contexts]
    if not training or len(texts) == 1:
        return texts[0]
    return texts[int(np.random.default_rng([*seed, 1]).integers(len(texts)))]


def _behind_history(example: Example, context: str, options: SampleOptions, seed: list[int]) -> str:
    """Context behind earlier texts of the row's user: in training some that are drawn, else the newest."""
    texts, wording = earlier_texts(example), options.wording
    if wording is None or not texts:
        return context
    if options.training:
        texts = drawn_texts(texts, wording.history_texts, options.history_dropout, [*seed, 2])
    return wording.with_history(texts, context)
