"""BLEU-1..4 of Papineni et al. 2002 (https://aclanthology.org/P02-1040) as the COCO caption evaluation computes it.

What COCO (https://arxiv.org/abs/1504.00325) settles: the reference length is the one closest to the prediction's (the
shorter on a tie); each precision is (matches + 1e-15) / (n-grams + 1e-9), so that a caption without a matching 4-gram
gets a tiny figure and not an error; the corpus figure pools matches and lengths of all items before it divides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmprefix.metrics.ngrams import ORDERS, Counts, Tokens

_TINY = 1e-15
_SMALL = 1e-9


def _matches(prediction: Counts, references: Sequence[Counts]) -> list[int]:
    """For each order, how many of the prediction's n-grams a reference holds, each at most as often as it does."""
    return [
        sum(
            min(count, max(reference[index].get(ngram, 0) for reference in references))
            for ngram, count in counts.items()
        )
        for index, counts in enumerate(prediction)
    ]


def _scores(matches: Sequence[int], possible: Sequence[int], length: int, reference_length: int) -> list[float]:
    """BLEU-1..4 from counts: the geometric mean of the precisions times the penalty for being too short."""
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for order, matched, total in zip(ORDERS, matches, possible, strict=True):
        product *= (matched + _TINY) / (total + _SMALL)
        scores.append(product ** (1 / order) * penalty)
    return scores


def bleu(
    predictions: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    prediction_counts: Sequence[Counts],
    reference_counts: Sequence[Sequence[Counts]],
) -> tuple[list[float], list[list[float]]]:
    """BLEU-1..4 of the set, and of each item: ``(4 numbers, a list of 4 numbers an item)``."""
    items: list[list[float]] = []
    matched_all, possible_all, length_all, reference_length_all = [0] * 4, [0] * 4, 0, 0
    for tokens, texts, counts, text_counts in zip(
        predictions, references, prediction_counts, reference_counts, strict=True
    ):
        length = len(tokens)
        reference_length = min((len(text) for text in texts), key=lambda other: (abs(other - length), other))
        matched = _matches(counts, text_counts)
        possible = [max(0, length - order + 1) for order in ORDERS]
        items.append(_scores(matched, possible, length, reference_length))
        matched_all = [a + b for a, b in zip(matched_all, matched, strict=True)]
        possible_all = [a + b for a, b in zip(possible_all, possible, strict=True)]
        length_all += length
        reference_length_all += reference_length
    return _scores(matched_all, possible_all, length_all, reference_length_all), items
