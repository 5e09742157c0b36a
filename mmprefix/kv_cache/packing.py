"""Texts of different lengths in one row an input, and where each of their tokens is predicted.

All of it is known before a model has computed anything, so it is made where it costs no waiting: on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import torch
from torch import Tensor

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


def pack_texts(rows: list[list[list[int]]]) -> Tensor:
    """Branches of tokens, one row an input → (3 B N): ids, branch number (-1 where padding), place in it."""
    lengths, owner, number = _texts(rows)
    flat, text, place = _tokens(rows, lengths)
    widths = np.bincount(owner, lengths, len(rows)).astype(np.int64)  # tokens of each input
    first = (widths.cumsum() - widths)[owner[text]]  # where the tokens of each one's input begin
    found = np.zeros((3, len(rows), max(widths, default=0)), np.int64)
    found[1] = -1
    found[:, owner[text], np.arange(len(flat)) - first] = flat, number[text], place
    return torch.from_numpy(found)


def plan_targets(ids: list[list[list[int]]], asked: list[list[int]] | None = None) -> Tensor:
    """(3 C), for every target token: the row of hidden states that predicts it, its id, and the number of its text.

    Rows are first the B trunks (which predict first tokens, for all texts of an input at once), then all packed
    tokens in order. ``asked`` says how many tokens of each text are a question, which nobody has to predict.
    """
    lengths, owner, _ = _texts(ids)
    flat, text, place = _tokens(ids, lengths)
    run = np.maximum(lengths - 1, 0)  # the last token of a text predicts nothing
    begin = len(ids) + run.cumsum() - run
    row = np.where(place > 0, begin[text] + place - 1, owner[text])
    found = np.stack([row, flat, text])
    if asked:
        found = found[:, place >= _numbers(chain.from_iterable(asked))[text]]
    return torch.from_numpy(found)


def _texts(rows: list[list[list[int]]]) -> tuple[Numbers, Numbers, Numbers]:
    """Of each text: how many tokens it has, its input, and which of that input's texts it is."""
    lengths = _numbers(len(tokens) for texts in rows for tokens in texts)
    owner = _numbers(b for b, texts in enumerate(rows) for _ in texts)
    return lengths, owner, _numbers(n for texts in rows for n in range(len(texts)))


def _tokens(rows: list[list[list[int]]], lengths: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Of each token: itself, the number of its text, and its place there."""
    flat = _numbers(chain.from_iterable(chain.from_iterable(rows)))
    text = np.arange(len(lengths)).repeat(lengths)
    return flat, text, np.arange(len(flat)) - (lengths.cumsum() - lengths)[text]


def _numbers(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, np.int64)
