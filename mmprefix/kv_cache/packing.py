"""Packed texts: several texts of an input in one row, and a plan of which hidden state predicts which token.

Both depend on token ids alone, so they are computed on the CPU and nothing waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import torch
from torch import Tensor

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


def pack_texts(rows: list[list[list[int]]]) -> Tensor:
    """Pack texts as token ids, one list per input → (3 B N): ids, text number (-1 in padding), offset in the text."""
    lengths, owner, number = _texts(rows)
    flat, text, offset = _tokens(rows, lengths)
    widths = np.bincount(owner, lengths, len(rows)).astype(np.int64)  # tokens of each input
    first = (widths.cumsum() - widths)[owner[text]]  # index of the first token of the same input
    packed = np.zeros((3, len(rows), max(widths, default=0)), np.int64)
    packed[1] = -1
    packed[:, owner[text], np.arange(len(flat)) - first] = flat, number[text], offset
    return torch.from_numpy(packed)


def pad_ids(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of B rows → ids (B N), padded with 0, and their mask (B N, True where real)."""
    width = max(map(len, ids), default=0)
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in ids])
    return padded, torch.arange(width) < lengths[:, None]


def count_targets(ids: list[list[list[int]]], question_lengths: list[list[int]] | None = None) -> Tensor:
    """Counts (2 C) for the texts of ``plan_targets``: number of target tokens of each, and the index of its input."""
    lengths, owner, _ = _texts(ids)
    if question_lengths:
        lengths = lengths - _numbers(chain.from_iterable(question_lengths))
    return torch.from_numpy(np.stack([lengths, owner]))


def plan_targets(ids: list[list[list[int]]], question_lengths: list[list[int]] | None = None) -> Tensor:
    """Plan (3 C) of target tokens: the row of hidden states that predicts each, its id, and the number of its text.

    Rows are the B states first (each predicts the first tokens of all texts of its input), then all packed tokens in
    order. ``question_lengths``: number of tokens at the start of each text that are a question, not targets.
    """
    lengths, owner, _ = _texts(ids)
    flat, text, offset = _tokens(ids, lengths)
    run = np.maximum(lengths - 1, 0)  # the last token of a text predicts nothing
    start = len(ids) + run.cumsum() - run
    row = np.where(offset > 0, start[text] + offset - 1, owner[text])
    plan = np.stack([row, flat, text])
    if question_lengths:
        plan = plan[:, offset >= _numbers(chain.from_iterable(question_lengths))[text]]
    return torch.from_numpy(plan)


def _texts(rows: list[list[list[int]]]) -> tuple[Numbers, Numbers, Numbers]:
    """Length of each text, index of its input, and its number among that input's texts."""
    lengths = _numbers(len(tokens) for texts in rows for tokens in texts)
    owner = _numbers(b for b, texts in enumerate(rows) for _ in texts)
    return lengths, owner, _numbers(n for texts in rows for n in range(len(texts)))


def _tokens(rows: list[list[list[int]]], lengths: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Id of each token, the number of its text, and its offset in that text."""
    flat = _numbers(chain.from_iterable(chain.from_iterable(rows)))
    text = np.arange(len(lengths)).repeat(lengths)
    return flat, text, np.arange(len(flat)) - (lengths.cumsum() - lengths)[text]


def _numbers(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, np.int64)
