"""Search over a shared KV cache: each step appends one token to every hypothesis; a tree mask hides other hypotheses.

A decoder has run prefix and prompt once: a state. Every step adds W nodes to the token tree after each input's state,
one per hypothesis, and a mask lets a hypothesis attend to its own ancestors. So keys and values of the state are stored
once per input, and no cache is copied or reordered when beams change their order. Finished inputs leave the batch.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from mmprefix.fast import cuda_graph, small_batch_linear, switches
from mmprefix.generation.constrained_beams import ConstrainedBeamSearch
from mmprefix.generation.constraints import PhraseConstraint
from mmprefix.generation.next_tokens import LogitsProcessor, NextTokens
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.strategies import Hypothesis, Opening, SearchStrategy, strategy_for
from mmprefix.kv_cache.cache import preallocated_cache, select_rows
from mmprefix.kv_cache.protocols import TokenTree, TreeModel
from mmprefix.kv_cache.state import State
from mmprefix.types import to_list

Result = TypeVar("Result")
Steps: TypeAlias = "Generator[SearchStrategy, None, Result]"
"""A search that stops after every step, with its hypotheses so far, and returns its result."""
COMPACT_BELOW = 0.75  # finished inputs are dropped once no larger part of the batch is active: that copies the cache


def run_to_end(steps: Steps[Result]) -> Result:
    """Result of a search whose steps nobody looks at."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(Result, end.value)


def search(
    first: Tensor,
    tree: TokenTree,
    options: GenerateOptions,
    *,
    stops: Tensor,
    processors: Sequence[LogitsProcessor],
    opening: Opening | None = None,
) -> Steps[list[list[Hypothesis]]]:
    """Search hypotheses for each input, one step at a time; the best comes first.

    ``first`` (B V): logits after the state. ``stops`` (any number): token ids that end a hypothesis. The state holds
    the tokens of ``opening`` already.
    """
    width, count = options.width, len(first)
    opening = Opening.none(count, first.device) if opening is None else opening
    steps = options.max_new_tokens - len(opening.tokens)
    constraint = next((each for each in processors if isinstance(each, PhraseConstraint)), None)
    if constraint is not None and options.allots_beams:
        strategy: SearchStrategy = ConstrainedBeamSearch(stops, options, opening, constraint)
    else:
        strategy = strategy_for(options, stops, opening)
    results: list[list[Hypothesis]] = [[]] * count
    inputs = torch.arange(count, device=first.device)  # inputs still in the batch
    own = torch.eye(width, dtype=torch.bool, device=first.device)[None]
    ancestry = own[:, :, :0].expand(count, -1, -1)
    next_tokens = NextTokens(first[:, None], strategy.tokens, processors)
    for steps_left in range(steps - 1, -1, -1):
        parents, tokens = strategy.step(next_tokens)
        yield strategy
        active = int(strategy.active.sum())
        if not active or not steps_left:
            break
        inherited = ancestry.gather(1, parents[..., None].expand(-1, -1, ancestry.shape[-1]))
        ancestry = torch.cat([inherited, own.expand(len(inputs), -1, -1)], dim=-1)  # (B W M)
        if tree.should_compact(active, len(inputs)):
            done, open_rows = (~strategy.active).nonzero()[:, 0], strategy.active.nonzero()[:, 0]
            for b, hypotheses in zip(to_list(inputs[done]), strategy.select(done).finished(), strict=True):
                results[b] = hypotheses
            strategy, inputs = strategy.select(open_rows), inputs[open_rows]
            ancestry, tokens = ancestry[open_rows], tokens[open_rows]
            tree.select(open_rows)
        next_tokens = NextTokens(tree.step(tokens, ancestry), strategy.tokens, processors)
    for b, hypotheses in zip(to_list(inputs), strategy.finished(), strict=True):
        results[b] = hypotheses
    return results


def can_record(decoder: TreeModel, state: State, steps: int) -> bool:
    """True if a search after ``state`` runs on a GPU, is long enough to be recorded, and has no terms beside the cache.

    Updates of the text's embeddings are not recorded. A model whose recording failed keeps fixed buffers and runs step
    by step: its results keep their bits.
    """
    on_gpu = state.mask.is_cuda and "cuda_graph" in switches.ENABLED
    changed = state.text_updates is not None or state.side
    return on_gpu and steps >= cuda_graph.MIN_STEPS and not decoder.lm.training and not changed


@contextmanager
def open_tree(decoder: TreeModel, state: State, width: int, steps: int) -> Generator[TokenTree]:
    """Token tree of at most ``steps`` steps of ``width`` nodes after ``state``."""
    if can_record(decoder, state, steps):
        with cuda_graph.open_graph_tree(decoder, state, width, steps) as tree:
            yield tree
    else:
        yield EagerTree(decoder, state, width * steps)


class EagerTree:
    """``TokenTree`` whose cache grows with each step."""

    def __init__(self, decoder: TreeModel, state: State, room: int) -> None:
        self.decoder, self.cache = decoder, preallocated_cache(state.cache, room)
        self.state = replace(state, cache=(), last_hidden=None)  # a step reads mask and memory only
        self.buffer: Tensor | None = None  # for the logits of a step: writing to fresh memory is slow

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Add a node for each hypothesis, ``tokens`` (B W) → logits (B W V), valid until the next step."""
        decoder, state = self.decoder, self.state
        depth = torch.full_like(tokens, ancestry.shape[-1] // tokens.shape[1] - 1)
        position_ids = decoder.position_ids(state, depth)
        hidden = decoder.forward_tokens(
            state, self.cache, decoder.embed(tokens), visible=ancestry, position_ids=position_ids
        )
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (B W E') → logits (B W V)."""
        head, rows = self.decoder.output_matrix(), hidden.flatten(0, 1)
        few = len(rows) <= small_batch_linear.MAX_ROWS
        if head is None or few or hidden.device.type != "cpu" or cast(Tensor | None, head.bias) is not None:
            return self.decoder.logits(hidden)
        if head.weight.dtype != hidden.dtype:  # a head of float32 over a model in half precision
            return self.decoder.logits(hidden)
        if self.buffer is None:
            self.buffer = hidden.new_empty(len(rows), len(head.weight))
        product: Tensor = torch.mm(rows, head.weight.T, out=self.buffer[: len(rows)])
        return product.view(*hidden.shape[:2], -1)

    def should_compact(self, active: int, count: int) -> bool:
        """True if enough inputs have finished to pay for a copy of the cache."""
        return active <= COMPACT_BELOW * count

    def select(self, rows: Tensor) -> None:
        """Keep the inputs ``rows``."""
        self.state = self.state.select(rows)
        select_rows(self.cache, rows)
