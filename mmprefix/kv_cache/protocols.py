"""Protocols between a search's token tree and the decoder that computes its steps."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from transformers import DynamicCache

from mmprefix.kv_cache.state import State


class TreeModel(Protocol):
    """The part of a decoder that a tree of hypotheses needs: embeddings, a pass over the cache, logits."""

    lm: nn.Module

    def forward_tokens(
        self, state: State, cache: DynamicCache, embeds: Tensor, visible: Tensor, position_ids: Tensor
    ) -> Tensor:
        """N tokens (B N E) behind the cache of ``state``, which grows by them → hidden states (B N E')."""
        ...

    def position_ids(self, state: State, offset: Tensor) -> Tensor:
        """Position ids (B N) of tokens that stand ``offset`` (B N) behind the state's real positions."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (B N) → embeddings (B N E)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E') → logits (... V)."""
        ...

    def output_matrix(self) -> nn.Linear | None:
        """The output matrix where it alone makes the logits and is not trained; else None."""
        ...


class TokenTree(Protocol):
    """The states of B inputs and the nodes behind them: each step adds W, one for each hypothesis."""

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Add a node for each hypothesis, ``tokens`` (B W) → the logits (B W V) after them.

        ``ancestry`` (B W M), True where one of the M nodes belongs to a hypothesis; the new nodes are last.
        """
        ...

    def should_compact(self, active: int, count: int) -> bool:
        """Whether to drop finished inputs from the batch now (costs one copy of the cache); ``active`` are not."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep the inputs ``rows``."""
        ...
