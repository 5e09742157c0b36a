"""BLEU-1..4 of Papineni et al. 2002 (https://aclanthology.org/P02-1040) as the COCO caption evaluation computes it.

Choices of COCO (https://arxiv.org/abs/1504.00325): the reference length is the one closest to the prediction's (the
shorter on a tie); each precision is (matches + 1e-15) / (n-grams + 1e-9), so that a caption without a matching 4-gram
gets a tiny score and not an error; the corpus score pools matches and lengths of all items before it divides.
"""

from __future__ import annotations

import numpy as np

from mmprefix.metrics.ngrams import ORDERS, Floats, Ints, NgramCounts, NgramTable, lookup

_TINY = 1e-15
_SMALL = 1e-9


def _matches(table: NgramTable, counts: NgramCounts) -> Ints:
    """Clipped n-gram matches of each prediction (I): an n-gram counts at most as often as one reference holds it."""
    ours = table.text < counts.items
    theirs = counts.owner[table.text[~ours]] * table.ngrams + table.ngram[~ours]
    order = np.argsort(theirs, kind="stable")
    keys, first = np.unique(theirs[order], return_index=True)
    most = np.maximum.reduceat(table.count[~ours][order], first) if len(keys) else np.zeros(0, dtype=np.int64)
    index, matched = lookup(keys, table.text[ours] * table.ngrams + table.ngram[ours])
    clipped = np.minimum(table.count[ours][matched], most[index[matched]])
    return np.bincount(table.text[ours][matched], clipped, counts.items).astype(np.int64)


def _closest_reference_length(counts: NgramCounts) -> Ints:
    """Length of the reference closest in length to each prediction (I); the shorter on a tie."""
    owner, length = counts.owner[counts.items :], counts.length[counts.items :]
    order = np.lexsort((length, np.abs(length - counts.length[owner]), owner))
    return length[order][np.unique(owner[order], return_index=True)[1]]


def _scores(matches: Floats, possible: Floats, length: Floats, reference_length: Floats) -> Floats:
    """BLEU-1..4 (4 I) from counts (4 I) and lengths (I): geometric mean of the precisions times the brevity penalty."""
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    product = np.cumprod((matches + _TINY) / (possible + _SMALL), axis=0)
    return product ** (1 / np.asarray(ORDERS)[:, None]) * penalty


def bleu(counts: NgramCounts) -> tuple[list[float], list[list[float]]]:
    """BLEU-1..4 of the corpus (4 numbers), and four lists with one number per item (I each)."""
    length = counts.length[: counts.items].astype(np.float64)
    closest = _closest_reference_length(counts).astype(np.float64)
    matches = np.stack([_matches(table, counts) for table in counts.tables]).astype(np.float64)
    possible = np.stack([np.maximum(0, length - order + 1) for order in ORDERS])
    items = _scores(matches, possible, length, closest)
    corpus = _scores(*(part.sum(-1, keepdims=True) for part in (matches, possible, length, closest)))
    return corpus[:, 0].tolist(), items.tolist()
