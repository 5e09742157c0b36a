"""CIDEr-D of Vedantam et al. 2015 (https://arxiv.org/abs/1411.5726), section 5 and the COCO caption evaluation.

Each text becomes four vectors of TF-IDF weights, one for each n-gram length 1..4, without stemming. For each length,
the prediction's weights are clipped to the reference's, and their cosine is multiplied by a Gaussian (sigma 6) of the
difference in length. A prediction's score against a reference is the mean over the four n-gram lengths; an item's
score is 10 times the mean over its references. IDF is log(items / items whose references hold the n-gram), so scores
depend on the set: a caption scores differently in another set, and every caption of a set of one item scores 0.

The length of a text is counted in bigrams, as in the evaluation's own code; only for empty texts do they differ.
"""

from __future__ import annotations

import math

import numpy as np

from mmprefix.metrics.ngrams import Floats, NgramCounts, NgramTable, lookup

SIGMA = 6.0
SCALE = 10.0


def _cosines(table: NgramTable, counts: NgramCounts) -> Floats:
    """Cosine (M) of each reference with its item's clipped prediction, for n-grams of one length."""
    ours = table.text < counts.items
    owner = counts.owner[table.text]
    keys = owner * table.ngrams + table.ngram
    holding = np.bincount(np.unique(keys[~ours]) % max(1, table.ngrams), minlength=table.ngrams)
    weight = table.count * (math.log(counts.items) - np.log(np.maximum(1, holding)))[table.ngram]  # TF-IDF (R)
    norm = np.sqrt(np.bincount(table.text, weight**2, len(counts.owner)))  # (I + M)
    index, matched = lookup(keys[ours], keys[~ours])
    theirs = weight[~ours][matched]
    products = np.minimum(weight[ours][index[matched]], theirs) * theirs
    shared = np.bincount(table.text[~ours][matched], products, len(counts.owner))[counts.items :]
    norms = norm[counts.owner[counts.items :]] * norm[counts.items :]
    return np.divide(shared, norms, out=np.zeros(shared.shape), where=norms > 0)


def cider_d(counts: NgramCounts) -> list[float]:
    """CIDEr-D of each item (I), with the IDF of the references of the whole set; the corpus score is the mean."""
    owner = counts.owner[counts.items :]
    cosine = sum((_cosines(table, counts) for table in counts.tables), np.zeros(len(owner))) / len(counts.tables)
    bigrams = np.maximum(0, counts.length - 1)
    closeness = np.exp(-((bigrams[owner] - bigrams[counts.items :]) ** 2) / (2 * SIGMA**2))
    total = np.bincount(owner, cosine * closeness, counts.items)
    return (SCALE * total / np.bincount(owner, minlength=counts.items)).tolist()
