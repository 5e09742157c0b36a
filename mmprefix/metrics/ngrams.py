"""N-grams of a whole set of texts as arrays, counted once and shared by BLEU, CIDEr-D and the distinct figures."""

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
class NgramTable:
    """N-grams of one length in all texts: R rows, sorted by text and n-gram, each pair of them once.

    ``text`` (R) and ``ngram`` (R) are indices, ``count`` (R) the occurrences of that n-gram in that text; ``ngrams`` is
    the number of different n-grams.
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
    tables: tuple[NgramTable, ...]


def _tables(texts: Sequence[Tokens], length: Ints) -> tuple[NgramTable, ...]:
    vocabulary: dict[str, int] = {}
    flat = [vocabulary.setdefault(token, len(vocabulary)) for text in texts for token in text]
    tokens = np.asarray(flat, dtype=np.int64)
    text = np.repeat(np.arange(len(texts)), length)
    left = np.repeat(np.cumsum(length), length) - np.arange(len(tokens))  # tokens from this one to the text's end
    start = np.arange(len(tokens))
    ngram, tables = np.zeros(len(tokens), dtype=np.int64), []
    for order in ORDERS:
        long_enough = left[start] >= order
        start, ngram = start[long_enough], ngram[long_enough]
        # An n-gram is the shorter one before it and one more token: two numbers, packed, then numbered anew.
        different, ngram = np.unique(ngram * len(vocabulary) + tokens[start + order - 1], return_inverse=True)
        span = max(1, len(different))
        keys, count = np.unique(text[start] * span + ngram, return_counts=True)
        tables.append(NgramTable(keys // span, keys % span, count.astype(np.int64), len(different)))
    return tuple(tables)


def counted(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Counted:
    """Count the n-grams of a set; every item has at least one reference."""
    texts = [*predictions, *(text for item in references for text in item)]
    each = [len(item) for item in references]
    owner = np.concatenate([np.arange(len(predictions)), np.repeat(np.arange(len(predictions)), each)])
    length = np.asarray([len(text) for text in texts], dtype=np.int64)
    return Counted(len(predictions), owner, length, _tables(texts, length))


def locate(keys: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Index of each of ``wanted`` (W) in the sorted ``keys``, and a mask (W), True where it is among them."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return index, keys[index] == wanted


def distinct(counts: Counted, order: int) -> float:
    """Distinct-n of Li et al. 2016 (https://arxiv.org/abs/1510.03055): different n-grams / n-grams of all predictions.

    A set without a single n-gram scores 0.
    """
    table = counts.tables[ORDERS.index(order)]
    ours = table.text < counts.items
    total = int(table.count[ours].sum())
    return len(np.unique(table.ngram[ours])) / total if total else 0.0
