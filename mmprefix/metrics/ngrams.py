"""N-gram counts of a whole set of texts as arrays: counted once, shared by BLEU, CIDEr-D and distinct-n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDERS = (1, 2, 3, 4)
"""N-gram lengths of BLEU-4 and CIDEr-D."""

Tokens = Sequence[str]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NgramTable:
    """N-grams of one length: R rows, one for each pair of text and n-gram, sorted by both.

    ``text`` (R) and ``ngram`` (R) are the numbers of text and n-gram, ``count`` (R) is how often that text holds that
    n-gram; ``ngrams`` is the number of different n-grams.
    """

    text: Ints
    ngram: Ints
    count: Ints
    ngrams: int


@dataclass(frozen=True)
class NgramCounts:
    """N-grams of a set to score: I + M numbered texts, the I predictions and then the M references of all items.

    ``owner`` (I + M) is the item of each text, ``length`` (I + M) its number of tokens; ``tables`` has one table for
    each of ``ORDERS``.
    """

    items: int
    owner: Ints
    length: Ints
    tables: tuple[NgramTable, ...]


def _tables(texts: Sequence[Tokens], length: Ints) -> tuple[NgramTable, ...]:
    """One table for each of ``ORDERS``; ``length`` (texts) is the number of tokens of each text."""
    vocabulary: dict[str, int] = {}
    flat = [vocabulary.setdefault(token, len(vocabulary)) for text in texts for token in text]
    tokens = np.asarray(flat, dtype=np.int64)
    text = np.repeat(np.arange(len(texts)), length)
    left = np.repeat(np.cumsum(length), length) - np.arange(len(tokens))  # tokens from each one to the end of its text
    start = np.arange(len(tokens))
    ngram, tables = np.zeros(len(tokens), dtype=np.int64), []
    for order in ORDERS:
        fits = left[start] >= order
        start, ngram = start[fits], ngram[fits]
        # An n-gram is an (n-1)-gram and one more token: two numbers, packed into one, then numbered anew.
        different, ngram = np.unique(ngram * len(vocabulary) + tokens[start + order - 1], return_inverse=True)
        span = max(1, len(different))
        keys, count = np.unique(text[start] * span + ngram, return_counts=True)
        tables.append(NgramTable(keys // span, keys % span, count.astype(np.int64), len(different)))
    return tuple(tables)


def count_ngrams(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> NgramCounts:
    """Count the n-grams of a set; every item has at least one reference."""
    texts = [*predictions, *(text for item in references for text in item)]
    each = [len(item) for item in references]
    owner = np.concatenate([np.arange(len(predictions)), np.repeat(np.arange(len(predictions)), each)])
    length = np.asarray([len(text) for text in texts], dtype=np.int64)
    return NgramCounts(len(predictions), owner, length, _tables(texts, length))


def lookup(keys: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Index of each of ``wanted`` (N) in the sorted ``keys``, and a mask (N) of those that ``keys`` holds."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return index, keys[index] == wanted


def distinct(counts: NgramCounts, order: int) -> float:
    """Distinct-n of Li et al. 2016 (https://arxiv.org/abs/1510.03055): different n-grams / n-grams of all predictions.

    A set without any n-gram scores 0.
    """
    table = counts.tables[ORDERS.index(order)]
    ours = table.text < counts.items
    total = int(table.count[ours].sum())
    return len(np.unique(table.ngram[ours])) / total if total else 0.0
