"""Allowed answers as a trie: what they begin with in common is read once, and one pass scores them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Trie(NamedTuple):
    """M nodes below a root that has been read already, the tokens that are looked up at root and nodes, and by whom.

    ``tokens`` (M,) and ``depth`` (M,) of the nodes, 0 below the root · ``sees`` (M M), True from a node to itself and
    its ancestors · ``places`` (E,), 0 for the root and m + 1 for node m, and ``next`` (E,), the token looked up there ·
    ``edge`` (R,) and ``text`` (R,): text r uses edge r, for all tokens of all texts.
    """

    tokens: Tensor
    depth: Tensor
    visible: Tensor
    node: Tensor
    token: Tensor
    edge_of_use: Tensor
    text_of_use: Tensor


def build_trie(texts: Sequence[Sequence[int]], device: torch.device) -> Trie:
    """The trie of ``texts`` as token ids, each with its end; no text may be empty."""
    nodes: dict[tuple[int, ...], int] = {}
    edges: dict[tuple[int, int], int] = {}
    uses: list[tuple[int, int]] = []
    for number, ids in enumerate(texts):
        for place in range(len(ids)):
            start = tuple(ids[:place])
            node = nodes.setdefault(start, len(nodes)) if start else -1
            edge = edges.setdefault((node + 1, ids[place]), len(edges))
            uses.append((edge, number))
    sees = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for start, node in nodes.items():
        sees[node, [nodes[start[:length]] for length in range(1, len(start) + 1)]] = True

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Trie(
        column([start[-1] for start in nodes]),
        column([len(start) - 1 for start in nodes]),
        sees.to(device),
        column([place for place, _ in edges]),
        column([token for _, token in edges]),
        column([edge for edge, _ in uses]),
        column([number for _, number in uses]),
    )
