"""Distillation of a long text into a deep prefix of the same frozen decoder.

Cartridges (Eyuboglu et al.), https://arxiv.org/abs/2506.06266: loss on the teacher's 20 likeliest tokens, Adam at a
constant rate of 0.02 without weight decay, first position frozen. Theirs starts from the text's first positions; here
the closed form of ``compaction`` is the default.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.distillation.cartridge import Cartridge
from mmprefix.distillation.compaction import compact
from mmprefix.distillation.teacher import Expected, Text, ask_teacher, mean_loss
from mmprefix.distillation.teacher_file import remembered_teacher
from mmprefix.errors import InputError
from mmprefix.kv_cache.side_terms import SideTerm
from mmprefix.types import AnyPrefix, DeepPrefix, MixedPrefix, Prefix, SidePrefix

log = logging.getLogger(__name__)
Start = Literal["compact", "text", "random"]


@dataclass(frozen=True)
class DistilOptions:
    """Options of the training.

    Args:
        batch_size: texts a step.
        rate: of Adam, constant.
        top: likeliest tokens of the teacher that are kept at each token.
        frozen: first positions that are not trained; None: 1, and 0 after a random start.
        seed: of the order of the texts, and of a random start.
    """

    batch_size: int = 16
    rate: float = 2e-2
    top: int = 20
    frozen: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "rate", "top"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name)}: give a number above 0")


def distil(
    decoder: ComposedDecoder,
    context: str,
    texts: Sequence[Text],
    *,
    positions: int = 32,
    start: Start = "compact",
    steps: int = 200,
    options: DistilOptions | None = None,
    teacher: str | Path | None = None,
) -> Cartridge:
    """Cartridge of ``positions`` that makes ``decoder`` write on as if ``context`` stood in its prompt.

    Args:
        decoder: a frozen language model, such as ``model.decoder``; it is teacher and student.
        context: the long text: a user's history, a glossary, a guide of style.
        texts: what is written behind it, as texts or pairs of prompt and text: the more like later use the better.
        positions: P, of the cartridge.
        start: "compact", the closed form; "text", the first P tokens of the context; "random", N(0, 1).
        steps: of training; 0 gives the start.
        options: of the training.
        teacher: a file that keeps what the teacher expects; a later call with the same decoder, context and texts reads
            it and does not run the teacher, whatever its positions, start and steps.

    Raises InputError for a start or numbers that cannot be, for texts that do not fit behind the context, and for a
    ``teacher`` that is another file.
    """
    options = options or DistilOptions()
    if steps and not texts:
        raise InputError("texts: there are none to train on; give some, or steps=0 for the start alone")
    prefix = start_prefix(decoder, context, positions, start, seed=options.seed)
    frozen = options.frozen if options.frozen is not None else int(start != "random")
    if not 0 <= frozen <= positions:
        raise InputError(f"frozen {frozen}: give a number from 0 up to positions, {positions}")
    if steps:
        top, size = options.top, options.batch_size
        if teacher is None:
            expected = ask_teacher(decoder, context, texts, top=top, batch_size=size)
        else:
            expected = remembered_teacher(Path(teacher), decoder, context, texts, top=top, batch_size=size)
        prefix = train(decoder, prefix, expected, frozen=frozen, steps=steps, options=options)
    return Cartridge.of(prefix, frozen, decoder)


def start_prefix(
    decoder: ComposedDecoder,
    context: str,
    positions: int,
    start: Start,
    *,
    seed: int = 0,
    front: DeepPrefix | None = None,
    terms: Sequence[SideTerm] = (),
) -> DeepPrefix:
    """Keys and values (L 1 H P K) before training; behind a ``front`` (L 1 H F K) without the context's first token.

    ``terms`` stand beside the cache.
    """
    if positions < 1:
        raise InputError(f"positions {positions}: give a number from 1 on")
    if start == "compact":
        return compact(decoder, context, positions, front=front, terms=terms)
    if start == "text":
        first, ids = int(front is not None), decoder.token_ids(context)
        if not ids:
            raise InputError(f"start text: {context!r} has no tokens; give a text with a word")
        ids = (ids * -(-(first + positions) // len(ids)))[: first + positions]
        decoder.language_model.require_deep(decoder.heads)
        whole = decoder.language_model.key_values(ids, 0, terms)
        return DeepPrefix(whole.keys[:, :, :, first:], whole.values[:, :, :, first:], whole.mask[:, first:])
    if start != "random":
        raise InputError(f"start {start!r}: give one of {', '.join(get_args(Start))}")
    decoder.language_model.require_deep(decoder.heads)
    generator, device = torch.Generator().manual_seed(seed), decoder.language_model.device
    shape = (2, decoder.layers, 1, decoder.heads, positions, decoder.head_width)
    keys, values = torch.randn(shape, generator=generator).to(device)
    return DeepPrefix(keys, values, torch.ones(1, positions, dtype=torch.bool, device=device))


def train(
    decoder: ComposedDecoder,
    prefix: DeepPrefix,
    expected: Sequence[Expected],
    *,
    frozen: int,
    steps: int,
    options: DistilOptions,
    terms: Sequence[SideTerm] = (),
    behind: Prefix | None = None,
) -> DeepPrefix:
    """Train keys and values (L 1 H P K) behind the first ``frozen`` positions on what the teacher expected.

    ``terms`` stand beside the cache; ``behind`` is read between the positions and the texts.
    """
    whole = torch.stack([prefix.keys, prefix.values]).detach()
    sink, table = whole[:, :, :, :, :frozen], whole[:, :, :, :, frozen:].clone().requires_grad_()
    optimizer = torch.optim.Adam([table], options.rate)

    def joined() -> DeepPrefix:
        keys, values = torch.cat([sink, table], dim=4)
        return DeepPrefix(keys, values, prefix.mask)

    for step, chunk in zip(range(steps), _chunks(expected, options), strict=False):
        loss = mean_loss(decoder, decoder.prefill(beside(joined().expand(len(chunk)), terms, behind)), chunk)
        (table.grad,) = torch.autograd.grad(loss, [table])
        optimizer.step()
        log.info("step %d: loss %.4f", step + 1, float(loss.detach()))
    with torch.no_grad():
        return joined()


def beside(prefix: DeepPrefix, terms: Sequence[SideTerm], behind: Prefix | None = None) -> AnyPrefix:
    """``prefix`` in the cache, ``terms`` beside it where there are any, embeddings of one input ``behind`` it."""
    whole = prefix if behind is None else MixedPrefix(prefix, behind.expand(len(prefix.mask)))
    return SidePrefix(whole, tuple(terms)) if terms else whole


def _chunks(expected: Sequence[Expected], options: DistilOptions) -> Iterator[list[Expected]]:
    """Batches for ever, each pass over the texts in another order."""
    generator = torch.Generator().manual_seed(options.seed)
    size = min(options.batch_size, len(expected))
    while True:
        order = torch.randperm(len(expected), generator=generator)
        for start in range(0, len(expected) - size + 1, size):
            yield [expected[int(index)] for index in order[start : start + size]]
