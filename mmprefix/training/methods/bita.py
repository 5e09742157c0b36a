"""Training of a BiTA drafter (https://arxiv.org/abs/2401.12522) on texts that the frozen decoder writes itself.

Groups of masks stand behind tokens that are drawn anew in every step; published: AdamW at 3e-2, half a cosine to zero.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.generation.drafting import Drafter
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import State
from mmprefix.types import Prefix


@torch.no_grad()
def greedy_texts(
    decoder: ComposedDecoder, prompts: Sequence[str], options: GenerateOptions
) -> list[tuple[State, list[int]]]:
    """State after each prompt, and the token ids that greedy search writes there."""
    made: list[tuple[State, list[int]]] = []
    for prompt in prompts:
        state = decoder.append(decoder.prefill(Prefix.empty(1, decoder.width)), [prompt])
        made.append((state, decoder.search_tokens(state, options, decoder.stop_ids())[0][0][0]))
    return made


def train_drafter(
    drafter: Drafter,
    decoder: ComposedDecoder,
    texts: Sequence[tuple[State, list[int]]],
    *,
    steps: int = 500,
    lr: float = 3e-2,
    groups: int = 16,
    batch: int = 4,
    seed: int = 0,
) -> list[float]:
    """Train ``drafter`` for ``steps`` steps of ``batch`` texts (see ``greedy_texts``), ``groups`` a text → the losses.

    Raises InputError where no text is longer than two tokens, so that there is nothing to draft.
    """
    long = [(state, ids) for state, ids in texts if len(ids) > 2]
    if not long:
        raise InputError("train_drafter: no text is longer than two tokens; give prompts that are gone on with")
    draw, losses = random.Random(seed), list[float]()
    optimizer = torch.optim.AdamW(drafter.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for state, ids in draw.choices(long, k=batch):
            behind = sorted(draw.sample(range(len(ids) - 2), min(groups, len(ids) - 2)))
            loss = drafter.loss(decoder, state, ids, behind) / batch
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(total)
    return losses
