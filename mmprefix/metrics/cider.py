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
from collections import Counter
from collections.abc import Sequence

from mmprefix.metrics.ngrams import Counts, Ngram

_SIGMA = 6.0
_SCALE = 10.0

_Vector = tuple[dict[Ngram, float], float]
"""TF-IDF weights of the n-grams of one length, and their Euclidean norm."""


def _weights(references: Sequence[Sequence[Counts]]) -> list[dict[Ngram, float]]:
    """IDF of every n-gram that the references hold, for each n-gram length."""
    items = math.log(len(references))
    tables: list[dict[Ngram, float]] = []
    for index in range(len(references[0][0])):
        held: Counter[Ngram] = Counter()
        for texts in references:
            held.update(set().union(*(counts[index] for counts in texts)))
        logs = {times: items - math.log(times) for times in set(held.values())}
        tables.append({ngram: logs[times] for ngram, times in held.items()})
    return tables


def _vectors(counts: Counts, weights: Sequence[dict[Ngram, float]], unseen: float) -> list[_Vector]:
    """The four TF-IDF vectors of one text; ``unseen`` is the IDF of an n-gram that no reference holds."""
    vectors = []
    for table, weight in zip(counts, weights, strict=True):
        values = {ngram: times * weight.get(ngram, unseen) for ngram, times in table.items()}
        vectors.append((values, math.sqrt(sum([value * value for value in values.values()]))))
    return vectors


def _similarity(prediction: Sequence[_Vector], reference: Sequence[_Vector]) -> float:
    """Mean over n-gram lengths of the cosine of the clipped prediction with the reference."""
    total = 0.0
    for (ours, our_norm), (theirs, their_norm) in zip(prediction, reference, strict=True):
        if our_norm and their_norm:
            shared = sum([min(ours[ngram], theirs[ngram]) * theirs[ngram] for ngram in ours.keys() & theirs.keys()])
            total += shared / (our_norm * their_norm)
    return total / len(prediction)


def cider_d(predictions: Sequence[Counts], references: Sequence[Sequence[Counts]]) -> list[float]:
    """CIDEr-D of each item, IDF over the references of the whole set; the corpus figure is the mean."""
    weights = _weights(references)
    unseen = math.log(len(references))
    scores = []
    for counts, texts in zip(predictions, references, strict=True):
        ours = _vectors(counts, weights, unseen)
        bigrams = counts[1].total()
        total = 0.0
        for text in texts:
            difference = bigrams - text[1].total()
            closeness = math.exp(-(difference**2) / (2 * _SIGMA**2))
            total += closeness * _similarity(ours, _vectors(text, weights, unseen))
        scores.append(_SCALE * total / len(texts))
    return scores
