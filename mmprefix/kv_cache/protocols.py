"""Protocols between a search's token tree and the decoder that it grows on."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from transformers import DynamicCache

from mmprefix.kv_cache.state import State


class TreeModel(Protocol):
    """What a tree asks of a decoder."""

    lm: nn.Module

    def forward_tokens(self, state: State, cache: DynamicCache, embeds: Tensor, sees: Tensor, places: Tensor) -> Tensor:
        """Tokens (B N E) behind the cache of a trunk, which grows by them → hidden states (B N E')."""
        ...

    def position_ids(self, state: State, offset: Tensor) -> Tensor:
        """Position numbers (B N) of tokens that stand ``offset`` (B N) behind the trunk's real positions."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (B N) → (B N E)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E') → logits (... V)."""
        ...

    def output_matrix(self) -> nn.Linear | None:
        """The output matrix where it alone makes the logits and is not trained; else None."""
        ...


class TokenTree(Protocol):
    """The trunks of B inputs, and the nodes behind them, W a step."""

    def step(self, tokens: Tensor, ancestry: Tensor) -> Tensor:
        """Adds a node for each line, ``tokens`` (B W), and gives the logits (B W V) after them.

        ``ancestry`` (B W M) says which of the M nodes a line has passed through, the new ones last.
        """
        ...

    def should_compact(self, still: int, count: int) -> bool:
        """Whether it is worth its cost to go on with the ``still`` open ones of ``count`` inputs alone."""
        ...

    def select(self, rows: Tensor) -> None:
        """Goes on with some of the inputs only."""
        ...
