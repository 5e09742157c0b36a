"""Numbers of a user out of the user's own texts: a distilled prefix, where a model puts the rows of its users.

In the cache a user's keys and values stand behind the deep prefix of the task and the first positions that all users
share. Where there are such, the attention that goes nowhere has its place already, and the history's own first position
is left out, as in ``compose``; the closed form is that of the rest behind them. Where the task's prefix has terms
beside the cache, histories are read with them, by teacher and student too. Embeddings of the task's prefix stand behind
the user's positions, with its updates of the text: a history does not see them, and teacher and student read them in
their place, before each text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.distillation.student import DistilOptions, Start, beside, start_prefix, train
from mmprefix.distillation.teacher import ask_teacher
from mmprefix.errors import InputError
from mmprefix.kv_cache.side_terms import SideTerm
from mmprefix.mappers.base import join_layers
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.model import PrefixLM
from mmprefix.types import DeepPrefix, Features, MixedPrefix, Prefix, all_real, concat_deep, split_side

LINE = "\n"
NEWEST = 2048  # tokens of a history, at most


@dataclass(frozen=True)
class HistoryOptions:
    """How histories become prefixes.

    Args:
        positions: P, of a user's prefix; a history of fewer tokens has as many as those.
        start: as in ``distil``.
        texts: what is written behind a history, to train on.
        steps: of training; 0 gives the start.
        prompt: what stands before each text.
        training: options of the training.
    """

    positions: int = 16
    start: Start = "compact"
    texts: Sequence[str] = ()
    steps: int = 0
    prompt: str = ""
    training: DistilOptions = field(default_factory=DistilOptions)

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise InputError(f"positions {self.positions}: give a number from 1 on")
        if self.steps < 0 or bool(self.steps) != bool(self.texts):
            raise InputError(f"steps {self.steps}: give texts to train on and a number of steps from 1 on, or neither")
        if self.start == "random" and not self.steps:
            raise InputError("start random: says nothing before it is trained; give texts and steps, or another start")


def user_numbers(
    model: PrefixLM, table: DeepUserPrefix, history: Sequence[str], options: HistoryOptions | None = None
) -> Tensor:
    """Numbers (P n) of a user who wrote ``history``, as ``table``, the mapper of users in ``model``, reads them.

    The newest 2,048 tokens of the history are read, and at most half of the decoder's positions. Raises InputError for
    a decoder that takes no deep prefix or hides its attention, and for texts that do not fit behind the history.
    """
    options, decoder = options or HistoryOptions(), model.decoder
    if not isinstance(decoder, ComposedDecoder):
        raise InputError(f"decoder {decoder.identity.source!r}: is no language model whose keys and values are known")
    context = newest_tokens(decoder, joined_history(history, options.prompt))
    (shared, terms, behind), count = _shared(model, table), len(decoder.codec.marked_ids(context))
    before, training = shared.mask.shape[1], options.training
    front = shared if before and count > 1 else None
    positions = min(options.positions, count - (front is not None))
    own = start_prefix(decoder, context, positions, options.start, seed=training.seed, front=front, terms=terms)
    whole = concat_deep([shared, own])
    if options.steps:
        texts = [(options.prompt, text) for text in options.texts]
        reading = {"top": training.top, "batch_size": training.batch_size}
        expected = ask_teacher(decoder, context, texts, front=beside(shared, terms), behind=behind, **reading)
        frozen = before or int(options.start != "random" and positions > 1)
        steps = options.steps
        whole = train(
            decoder, whole, expected, frozen=frozen, steps=steps, options=training, terms=terms, behind=behind
        )
    return join_layers(whole)[0, before:].cpu()


def joined_history(history: Sequence[str], prompt: str = "") -> str:
    """Texts one a line, and a line break before the next text, unless the ``prompt`` begins with one."""
    return LINE.join(text for text in history if text.strip()) + ("" if prompt.startswith(LINE) else LINE)


def newest_tokens(decoder: ComposedDecoder, text: str) -> str:
    """The end of ``text`` that is read of a history, from the beginning of a line where there are several."""
    most = min(NEWEST, decoder.max_positions // 2 or NEWEST)
    whole = text
    while (count := len(decoder.codec.marked_ids(text))) > most:
        text = text[len(text) * (count - most) // count + 1 :]
    lines = "" if text == whole else text.partition(LINE)[2]
    return lines if lines.strip() else text


@torch.no_grad()
def _shared(model: PrefixLM, table: DeepUserPrefix) -> tuple[DeepPrefix, tuple[SideTerm, ...], Prefix | None]:
    """Surroundings of the numbers of any user, without positions where there is nothing.

    Keys and values (L 1 H F K) before them, terms beside the cache, and embeddings behind them (None: nothing).
    """
    sink = table.sink[None] if table.frozen else table.rows.new_zeros(1, 0, table.numbers)
    own = table.split_layers(sink, all_real(sink))
    if model.task_prefix is None:
        return own, (), None
    task, terms = split_side(model.task_prefix(Features.empty(1, sink.device)))
    deep = task.deep if isinstance(task, MixedPrefix) else task
    soft = task.soft if isinstance(task, MixedPrefix) else task
    shared = concat_deep([deep, own]) if isinstance(deep, DeepPrefix) else own
    return shared, terms, soft if isinstance(soft, Prefix) else None
