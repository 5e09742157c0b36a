"""The n-grams of a whole set of texts as arrays, counted once and shared by BLEU, CIDEr-D and the distinct figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDERS = (1, 2, 3, 4)
"""The n-gram lengths of BLEU-4 and CIDEr-D."""

Tokens = Sequence[str]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Which n-grams of one length the texts hold: R rows, sorted by text and n-gram, each pair of them once.

    ``text`` (R) and ``ngram`` (R) are numbers, ``count`` (R) is how often that text holds that n-gram; there are
    ``ngrams`` different ones.
    """

    text: Ints
    ngram: Ints
    count: Ints
    ngrams: int


@dataclass(frozen=True)
class Counted:
    """A set to score: I predictions, then every reference of every item, as I + M numbered texts.

    ``owner`` (I + M) is the item that a text belongs to, ``length`` (I + M) its tokens, ``tables`` one for each of
    ``ORDERS``.
    """

    items: int
    owner: Ints
    length: Ints
    tables: tuple[Table, ...]


def _tables(texts: Sequence[Tokens], length: Ints) -> tuple[Table, ...]:
    vocabulary: dict[str, int] = {}
    flat = [vocabulary.setdefault(token, len(vocabulary)) for text in texts for token in text]
    tokens = np.asarray(flat, dtype=np.int64)
    text = np.repeat(np.arange(len(texts)), length)
    left = np.repeat(np.cumsum(length), length) - np.arange(len(tokens))  # tokens from here to the text's end
    start = np.arange(len(tokens))
    ngram, tables = np.zeros(len(tokens), dtype=np.int64), []
    for order in ORDERS:
        going_on = left[start] >= order
        start, ngram = start[going_on], ngram[going_on]
        # An n-gram is the shorter one before it and one more token: two numbers, packed, then numbered anew.
        different, ngram = np.unique(ngram * len(vocabulary) + tokens[start + order - 1], return_inverse=True)
        span = max(1, len(different))
        keys, count = np.unique(text[start] * span + ngram, return_counts=True)
        tables.append(Table(keys // span, keys % span, count.astype(np.int64), len(different)))
    return tuple(tables)


def counted(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Counted:
    """Count the n-grams of a set; every item has at least one reference."""
    texts = [*predictions, *(text for item in references for text in item)]
    each = [len(item) for item in references]
    owner = np.concatenate([np.arange(len(predictions)), np.repeat(np.arange(len(predictions)), each)])
    length = np.asarray([len(text) for text in texts], dtype=np.int64)
    return Counted(len(predictions), owner, length, _tables(texts, length))


def found(keys: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each of ``wanted`` stands in the sorted ``keys``, and whether it stands there at all."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted


def distinct(counts: Counted, order: int) -> float:
    """Distinct-n of Li et al. 2016 (https://arxiv.org/abs/1510.03055): different n-grams / n-grams of all predictions.

    A set without a single n-gram scores 0.
    """
    table = counts.tables[ORDERS.index(order)]
    ours = table.text < counts.items
    total = int(table.count[ours].sum())
    return len(np.unique(table.ngram[ours])) / total if total else 0.0
