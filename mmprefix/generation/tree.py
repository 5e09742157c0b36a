"""What a search grows on: keys and values of each input's trunk, and of the nodes behind it, in a decoder's cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from mmprefix.fast import cuda_graph, small_batch_linear
from mmprefix.kv_cache import cache as caches
from mmprefix.kv_cache.protocols import Runs, Tree
from mmprefix.kv_cache.state import State

LEAVE = 0.75  # inputs leave the batch when no more than this part of it is still open: each time costs a copy


@contextmanager
def tree_behind(decoder: Runs, state: State, width: int, steps: int) -> Iterator[Tree]:
    """A tree of at most ``steps`` steps of ``width`` nodes behind what ``state`` has read."""
    if cuda_graph.usable(decoder, state, steps):
        with cuda_graph.recorded(decoder, state, width, steps) as tree:
            yield tree
    else:
        yield Grown(decoder, state, width * steps)


class Grown:
    """A tree whose cache becomes longer with each step."""

    def __init__(self, decoder: Runs, state: State, room: int) -> None:
        self.decoder, self.cache = decoder, caches.roomy(state.cache, room)
        self.state = replace(state, cache=(), last=None)  # all that is still asked of it
        self.space: Tensor | None = None  # for the logits of a step: memory that was never used is slow to write

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Tokens (B W), one for each line → logits (B W V)."""
        decoder, state = self.decoder, self.state
        depth = torch.full_like(tokens, ancestry.shape[-1] // tokens.shape[1] - 1)
        found = decoder.run(state, self.cache, decoder.embed(tokens), ancestry, decoder.place(state, depth))
        return self._logits(found)

    def _logits(self, found: Tensor) -> Tensor:
        """Hidden states (B W E') → (B W V), to be read before the next step."""
        head, rows = self.decoder.fixed_head(), found.flatten(0, 1)
        if head is None or head.bias is not None or len(rows) <= small_batch_linear.MOST or found.device.type != "cpu":
            return self.decoder.head(found)
        if self.space is None:
            self.space = found.new_empty(len(rows), len(head.weight))
        return torch.mm(rows, head.weight.T, out=self.space[: len(rows)]).unflatten(0, found.shape[:2])

    def lighter(self, still: int, count: int) -> bool:
        """When enough of them are done."""
        return still <= LEAVE * count

    def keep(self, rows: Tensor) -> None:
        """Only these inputs go on."""
        self.state = self.state.rows(rows)
        caches.keep(self.cache, rows)
