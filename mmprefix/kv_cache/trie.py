"""Trie of allowed answers: a shared beginning is run once, and one pass scores all answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Trie(NamedTuple):
    """M nodes below a root (the cached state), and E edges whose log-probabilities add up to those of the texts.

    ``tokens`` (M,) and ``depth`` (M,) of the nodes; depth is 0 just below the root · ``visible`` (M M), True from a
    node to itself and its ancestors · ``node`` (E,), the start of each edge: 0 for the root, m + 1 for node m ·
    ``token`` (E,), the token predicted there · ``edge_of_use`` (R,) and ``text_of_use`` (R,): for each of the R tokens
    of all texts its edge and its text.
    """

    tokens: Tensor
    depth: Tensor
    visible: Tensor
    node: Tensor
    token: Tensor
    edge_of_use: Tensor
    text_of_use: Tensor


def build_trie(texts: Sequence[Sequence[int]], device: torch.device) -> Trie:
    """Build the trie of ``texts`` as token ids, each with its end; no text may be empty."""
    nodes: dict[tuple[int, ...], int] = {}
    edges: dict[tuple[int, int], int] = {}
    uses: list[tuple[int, int]] = []
    for number, ids in enumerate(texts):
        for length, token in enumerate(ids):
            start = tuple(ids[:length])
            node = nodes.setdefault(start, len(nodes)) if start else -1
            edge = edges.setdefault((node + 1, token), len(edges))
            uses.append((edge, number))
    visible = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for start, node in nodes.items():
        visible[node, [nodes[start[:length]] for length in range(1, len(start) + 1)]] = True

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Trie(
        column([start[-1] for start in nodes]),
        column([len(start) - 1 for start in nodes]),
        visible.to(device),
        column([node for node, _ in edges]),
        column([token for _, token in edges]),
        column([edge for edge, _ in uses]),
        column([number for _, number in uses]),
    )
