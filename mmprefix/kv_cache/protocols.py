"""Protocols between the token tree of a search and the decoder that computes its steps."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from transformers import DynamicCache

from mmprefix.kv_cache.state import State


class TreeModel(Protocol):
    """Part of a decoder that a token tree needs: embeddings, a forward pass over the cache, logits."""

    lm: nn.Module

    def forward_tokens(
        self, state: State, cache: DynamicCache, embeds: Tensor, *, visible: Tensor, position_ids: Tensor
    ) -> Tensor:
        """Run N tokens (B N E) after ``state`` and append them to ``cache`` → hidden states (B N E').

        ``visible`` (B N M): which of the M tokens after the state each of the N attends to.
        """
        ...

    def position_ids(self, state: State, offset: Tensor) -> Tensor:
        """Position ids (B N) of tokens at ``offset`` (B N) after the state's real positions."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (B N) → embeddings (B N E)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E') → logits (... V)."""
        ...

    def output_matrix(self) -> nn.Linear | None:
        """Output matrix if it alone computes the logits and is not trained, else None."""
        ...


class TokenTree(Protocol):
    """States of B inputs and the nodes after them; each step adds W nodes, one per hypothesis."""

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Add a node for each hypothesis, ``tokens`` (B W) → logits (B W V) after them.

        ``ancestry`` (B W M): True for those of the M nodes that belong to a hypothesis; the new nodes are last.
        """
        ...

    def should_compact(self, active: int, count: int) -> bool:
        """True if dropping finished inputs from the batch pays for one copy of the cache; ``active`` remain."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep the inputs ``rows``."""
        ...
