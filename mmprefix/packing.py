"""Texts of different lengths in one row an input, and where each of their tokens is predicted."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(rows: list[list[list[int]]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Branches of tokens, one row an input → ids (B N), branch number (B N, -1 where padding), place in it (B N)."""
    width = max((sum(map(len, texts)) for texts in rows), default=0)
    ids, branch, offset = ([[fill] * width for _ in rows] for fill in (0, -1, 0))
    for b, texts in enumerate(rows):
        at = 0
        for number, tokens in enumerate(texts):
            end = at + len(tokens)
            ids[b][at:end] = tokens
            branch[b][at:end] = [number] * len(tokens)
            offset[b][at:end] = range(len(tokens))
            at = end
    packed = torch.tensor([ids, branch, offset], device=device).view(3, len(rows), width)
    return packed[0], packed[1], packed[2]


def plan_scores(
    ids: list[list[list[int]]], device: torch.device, asked: list[list[int]] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """For every target token: the row of hidden states that predicts it, its id, and the number of its text.

    Rows are first the B trunks (which predict first tokens, for all texts of an input at once), then all packed
    tokens in order. ``asked`` says how many tokens of each text are a question, which nobody has to predict.
    """
    plan: list[tuple[int, int, int]] = []
    row, text = len(ids), 0
    for b, texts in enumerate(ids):
        for number, tokens in enumerate(texts):
            given = asked[b][number] if asked else 0
            for place in range(given, len(tokens)):
                plan.append((row + place - 1 if place else b, tokens[place], text))
            row += max(len(tokens) - 1, 0)
            text += 1
    columns = torch.tensor(plan, dtype=torch.long, device=device).view(-1, 3).T
    return columns[0], columns[1], columns[2]
