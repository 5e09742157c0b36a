"""N-grams of a token list, counted once and shared by BLEU, CIDEr-D and the distinct figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

ORDERS = (1, 2, 3, 4)
"""The n-gram lengths of BLEU-4 and CIDEr-D."""

Tokens = Sequence[str]
Ngram = tuple[str, ...]
Counts = tuple[Counter[Ngram], ...]
"""How often each n-gram occurs, one counter for each of ``ORDERS``."""


def listed(tokens: Tokens, order: int) -> Iterable[Ngram]:
    """Every n-gram of ``tokens`` with n = ``order``, in reading order."""
    return zip(*(tokens[start:] for start in range(order)), strict=False)


def counted(tokens: Tokens) -> Counts:
    """The n-grams of ``tokens`` for n = 1, 2, 3, 4."""
    return tuple(Counter(listed(tokens, order)) for order in ORDERS)


def distinct(captions: Sequence[Tokens], order: int) -> float:
    """Distinct-n of Li et al. 2016 (https://arxiv.org/abs/1510.03055): different n-grams / all n-grams of all captions.

    A set without a single n-gram scores 0.
    """
    seen: set[Ngram] = set()
    total = 0
    for tokens in captions:
        seen.update(listed(tokens, order))
        total += max(0, len(tokens) - order + 1)
    return len(seen) / total if total else 0.0
