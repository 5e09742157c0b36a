"""Levenshtein distance, and the word and character error rates built on it.

The distance is the fewest insertions, deletions and substitutions that turn one sequence into another. It is computed
bit-parallel, one row of the table at a time in the bits of an integer (Myers 1999,
https://doi.org/10.1145/316542.316550, in the form of Hyyrö 2003).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache

from mmprefix.errors import InputError


def levenshtein(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and substitutions of items that turn ``a`` into ``b``."""
    if not a:
        return len(b)
    ones, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    positions: dict[Hashable, int] = {}  # bit i is set where a[i] is the item
    for position, item in enumerate(a):
        positions[item] = positions.get(item, 0) | 1 << position
    rises, falls, distance = ones, 0, len(a)  # bit i: the column rises or falls by 1 from row i to i + 1
    for item in b:
        equal = positions.get(item, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        right, left = falls | ~(diagonal | rises), rises & diagonal  # rises and falls along a row
        distance += bool(right & last) - bool(left & last)
        right, left = right << 1 | 1, left << 1
        rises, falls = (left | ~(equal | falls | right)) & ones, right & (equal | falls) & ones
    return distance


@lru_cache(maxsize=1 << 16)
def word_distance(prediction: str, reference: str) -> float:
    """Word edits / words of the reference (WER of one text): 0 if the texts are equal; it may exceed 1.

    Words are split at white space; case counts. An empty reference counts as one word.
    """
    words = reference.split()
    return levenshtein(words, prediction.split()) / max(1, len(words))


@lru_cache(maxsize=1 << 16)
def char_distance(prediction: str, reference: str) -> float:
    """Character edits / characters of the longer text: from 0 (equal, or both empty) to 1."""
    return levenshtein(reference, prediction) / max(1, len(reference), len(prediction))


def wer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Word error rate of a corpus: edits of all texts / words of all references; it may exceed 1.

    Words are split at white space; case and punctuation count, so normalise both sides first. Words predicted for an
    empty reference count as insertions; if all references are empty, the rate is the number of insertions.

    Raises:
        InputError: no texts, lists of different lengths, or an item that is no string.
    """
    pairs = [(a.split(), b.split()) for a, b in _pairs(predictions, references)]
    return _rate(pairs)


def cer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Character error rate of a corpus: like ``wer``, in characters; white space counts, except at either end."""
    return _rate([(a.strip(), b.strip()) for a, b in _pairs(predictions, references)])


def _rate(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    edits = sum(levenshtein(reference, prediction) for prediction, reference in pairs)
    return edits / max(1, sum(len(reference) for _, reference in pairs))


def _pairs(predictions: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    for name, texts in (("predictions", predictions), ("references", references)):
        if isinstance(texts, str):
            raise InputError(f"{name} is one string; it must be a list of strings")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"item {index} of {name} is {type(text).__name__}, not a string")
    if len(predictions) != len(references):
        raise InputError(f"{len(predictions)} predictions but {len(references)} references: give one each")
    if not predictions:
        raise InputError("no predictions: there is nothing to score")
    return list(zip(predictions, references, strict=True))
