"""ROUGE-L of Lin 2004 (https://aclanthology.org/W04-1013) as the COCO caption evaluation computes it.

Choices of COCO: beta is 1.2; precision and recall are each the best over the references, even if two different
references give them. The corpus score is the mean over items.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmprefix.metrics.ngrams import Tokens

_BETA = 1.2


def common_length(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence; a few integer operations for each token of ``second``.

    Bit-parallel after Hyyrö 2004: bit i of ``row`` is 0 where the table's row grows at token i of ``first``.
    """
    positions: dict[str, int] = {}  # bit i is set where first[i] is the token
    for position, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << position
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        hits = row & positions.get(token, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(first) - row.bit_count()


def rouge_l(prediction: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L of one prediction; an empty prediction scores 0, or 1 if a reference is empty too."""
    if not prediction:
        return float(any(not reference for reference in references))
    lengths = [(common_length(prediction, reference), len(reference)) for reference in references if reference]
    precision = max((common for common, _ in lengths), default=0) / len(prediction)
    recall = max((common / length for common, length in lengths), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
