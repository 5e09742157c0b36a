"""What a search grows on: keys and values of each input's trunk, and of the nodes behind it, in a decoder's cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from mmprefix.fast import cuda_graph, small_batch_linear
from mmprefix.kv_cache import cache as caches
from mmprefix.kv_cache.protocols import TokenTree, TreeModel
from mmprefix.kv_cache.state import State

COMPACT_BELOW = 0.75  # inputs leave the batch when no more than this part of it is still open: each time costs a copy


@contextmanager
def open_tree(decoder: TreeModel, state: State, width: int, steps: int) -> Iterator[TokenTree]:
    """A tree of at most ``steps`` steps of ``width`` nodes behind what ``state`` has read."""
    if cuda_graph.can_record(decoder, state, steps):
        with cuda_graph.open_graph_tree(decoder, state, width, steps) as tree:
            yield tree
    else:
        yield EagerTree(decoder, state, width * steps)


class EagerTree:
    """A tree whose cache becomes longer with each step."""

    def __init__(self, decoder: TreeModel, state: State, room: int) -> None:
        self.decoder, self.cache = decoder, caches.preallocated_cache(state.cache, room)
        self.state = replace(state, cache=(), last_hidden=None)  # all that is still asked of it
        self.space: Tensor | None = None  # for the logits of a step: memory that was never used is slow to write

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Tokens (B W), one for each line → logits (B W V)."""
        decoder, state = self.decoder, self.state
        depth = torch.full_like(tokens, ancestry.shape[-1] // tokens.shape[1] - 1)
        found = decoder.forward_tokens(
            state, self.cache, decoder.embed(tokens), ancestry, decoder.position_ids(state, depth)
        )
        return self._logits(found)

    def _logits(self, found: Tensor) -> Tensor:
        """Hidden states (B W E') → (B W V), to be read before the next step."""
        head, rows = self.decoder.output_matrix(), found.flatten(0, 1)
        if (
            head is None
            or head.bias is not None
            or len(rows) <= small_batch_linear.MAX_ROWS
            or found.device.type != "cpu"
        ):
            return self.decoder.logits(found)
        if self.space is None:
            self.space = found.new_empty(len(rows), len(head.weight))
        return torch.mm(rows, head.weight.T, out=self.space[: len(rows)]).unflatten(0, found.shape[:2])

    def should_compact(self, still: int, count: int) -> bool:
        """When enough of them are done."""
        return still <= COMPACT_BELOW * count

    def select(self, rows: Tensor) -> None:
        """Only these inputs go on."""
        self.state = self.state.select(rows)
        caches.select_rows(self.cache, rows)
