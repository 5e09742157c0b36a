"""Search for one text with several prefixes: each step runs all of them as one batch, and joins what they say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmprefix.generation.constraints import PhraseConstraint, require_holding
from mmprefix.generation.options import IMPOSSIBLE, GenerateOptions
from mmprefix.generation.search import open_tree, run_to_end, search
from mmprefix.generation.several.join import Join
from mmprefix.generation.several.states import stack_states
from mmprefix.generation.strategies import Hypothesis
from mmprefix.generation.writing import WritingModel, opening_ids, require_any
from mmprefix.kv_cache.protocols import TokenTree
from mmprefix.kv_cache.state import State
from mmprefix.types import Candidate, to_list


def write_joined(
    decoder: WritingModel,
    states: Sequence[State],
    join: Join,
    options: GenerateOptions,
    *,
    before: Sequence[str] | None = None,
) -> list[list[Candidate]]:
    """Texts of each of B inputs, the best first, that ``join`` makes of the ``states`` of ``decoder`` after S prefixes.

    A state holds the prompt too. ``before`` is the end of each input's prompt, which says whether ``start_with`` begins
    with a space. Raises InputError for prefixes that ``join`` does not take.
    """
    join.require(len(states))
    count = len(states[0].mask)
    endings = [text[-1:] for text in before] if before and options.start_with else [""] * count
    results: list[list[Candidate]] = [[] for _ in endings]
    for ending in dict.fromkeys(endings):
        rows = [row for row, own in enumerate(endings) if own == ending]
        chosen = torch.tensor(rows, device=states[0].mask.device)
        parts = states if len(rows) == count else [state.select(chosen) for state in states]
        for row, group in zip(rows, search_joined(decoder, parts, join, options, before=ending), strict=True):
            results[row] = [Candidate(_text(decoder, ids, options), score) for ids, score in group]
            require_any(results[row], options)
    return results


def _text(decoder: WritingModel, ids: list[int], options: GenerateOptions) -> str:
    text = decoder.codec.decode(ids)
    return require_holding(text, options) if options.constrains or options.start_with else text


@torch.no_grad()
def search_joined(
    decoder: WritingModel, states: Sequence[State], join: Join, options: GenerateOptions, *, before: str = ""
) -> list[list[Hypothesis]]:
    """Hypotheses of each input; ``start_with`` is written by a processor, so that every prefix scores it."""
    state, count = stack_states(states), len(states)
    stops = decoder.stop_ids(exactly=options.ranking == "clipcap")
    start = opening_ids(decoder.codec, options, before, to_list(stops))
    decoder.language_model.require_room(state, options.max_new_tokens)
    processors = decoder.logits_processors(options, stops)
    if options.constrains:
        processors.append(PhraseConstraint(decoder.codec.token_texts, options, stops))
    if start:
        processors.append(_Opening(start))
    with open_tree(decoder, state, options.width, options.max_new_tokens - 1) as tree:
        logits = decoder.logits(decoder.language_model.last_hidden(state))
        joined = JoinedTree(tree, join, logits.view(count, -1, logits.shape[-1]))
        return run_to_end(search(joined.first(), joined, options, stops=stops, processors=processors))


class _Opening:
    """Logits processor: a text begins with ``ids``."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids

    def __call__(self, log_probs: Tensor, hypotheses: Tensor) -> Tensor:
        length = hypotheses.shape[-1]
        if length >= len(self.ids):
            return log_probs
        only = torch.full_like(log_probs, IMPOSSIBLE)
        only[..., self.ids[length]] = log_probs[..., self.ids[length]]
        return only


class JoinedTree:
    """``TokenTree`` of B inputs over one of S*B rows: all prefixes get the same tokens, and their logits are joined.

    ``logits`` (S B V) are those after the states, before any token.
    """

    def __init__(self, tree: TokenTree, join: Join, logits: Tensor) -> None:
        self.tree, self.join, self.count = tree, join, len(logits)
        self.before = logits[:, :, None].float().log_softmax(-1)  # (S B 1 V), then (S B W V): the latest nodes'
        self.nodes = self.before[..., 0, :0]  # (S B M), log-probability of each node's token

    def first(self) -> Tensor:
        """Joined logits (B V) of the first token."""
        return self.join(self.before, self.nodes[:, :, None])[:, 0]

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Add a node for each hypothesis, ``tokens`` (B W) → joined logits (B W V)."""
        (inputs, width), nodes = tokens.shape, ancestry.shape[-1]
        parents = torch.zeros_like(tokens)  # of the hypotheses that a node continues
        if nodes > width:
            parents = ancestry[..., nodes - 2 * width : nodes - width].long().argmax(-1)
        index = (torch.arange(inputs, device=tokens.device)[:, None], parents, tokens)
        self.nodes = torch.cat([self.nodes, self.before[:, *index]], dim=-1)
        logits = self.tree.step(tokens.repeat(self.count, 1), ancestry.repeat(self.count, 1, 1))
        self.before = logits.view(self.count, inputs, width, -1).float().log_softmax(-1)
        shape = (self.count, inputs, width, -1)
        path = self.nodes[:, :, None].expand(shape)[ancestry.expand(self.count, -1, -1, -1)].view(shape)
        return self.join(self.before, path)

    def should_compact(self, active: int, count: int) -> bool:
        """True if dropping finished inputs pays."""
        return self.tree.should_compact(active, count)

    def select(self, rows: Tensor) -> None:
        """Keep the inputs ``rows`` under every prefix."""
        inputs = self.nodes.shape[1]
        self.before, self.nodes = self.before[:, rows], self.nodes[:, rows]
        self.tree.select(torch.cat([rows + number * inputs for number in range(self.count)]))
