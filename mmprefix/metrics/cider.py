"""CIDEr-D of Vedantam et al. 2015 (https://arxiv.org/abs/1411.5726), section 5 and the COCO caption evaluation.

Each text becomes four vectors of TF-IDF weights, one for each n-gram length 1..4, without stemming. A prediction's
score against a reference is the mean over the four of a cosine in which the prediction's weights are clipped to the
reference's, times a Gaussian (sigma 6) of the difference in length; the item's score is 10 times the mean over its
references. IDF is log(items / items whose references hold the n-gram), so scores depend on the set: the same caption
scores differently in another set, and every caption of a set of one item scores 0.

The length is counted in bigrams, as the evaluation's own code does; it differs from tokens only for empty texts.
"""

from __future__ import annotations

import math

import numpy as np

from mmprefix.metrics.ngrams import Counted, Floats, NgramTable, locate

_SIGMA = 6.0
_SCALE = 10.0


def _cosines(table: NgramTable, counts: Counted) -> Floats:
    """Cosine (M) of each reference with its item's prediction, the prediction clipped, for n-grams of one length."""
    ours = table.text < counts.items
    owner = counts.owner[table.text]
    keys = owner * table.ngrams + table.ngram
    holding = np.bincount(np.unique(keys[~ours]) % max(1, table.ngrams), minlength=table.ngrams)
    weight = table.count * (math.log(counts.items) - np.log(np.maximum(1, holding)))[table.ngram]  # TF-IDF, a row each
    norm = np.sqrt(np.bincount(table.text, weight**2, len(counts.owner)))  # (I + M)
    position, held = locate(keys[ours], keys[~ours])
    theirs = weight[~ours][held]
    products = np.minimum(weight[ours][position[held]], theirs) * theirs
    shared = np.bincount(table.text[~ours][held], products, len(counts.owner))[counts.items :]
    norms = norm[counts.owner[counts.items :]] * norm[counts.items :]
    return np.divide(shared, norms, out=np.zeros(shared.shape), where=norms > 0)


def cider_d(counts: Counted) -> list[float]:
    """CIDEr-D of each item, IDF over the references of the whole set; the corpus figure is the mean."""
    owner = counts.owner[counts.items :]
    cosine = sum((_cosines(table, counts) for table in counts.tables), np.zeros(len(owner))) / len(counts.tables)
    bigrams = np.maximum(0, counts.length - 1)
    closeness = np.exp(-((bigrams[owner] - bigrams[counts.items :]) ** 2) / (2 * _SIGMA**2))
    total = np.bincount(owner, cosine * closeness, counts.items)
    return (_SCALE * total / np.bincount(owner, minlength=counts.items)).tolist()
