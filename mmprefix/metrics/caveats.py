"""Caveats of caption metrics: sets for which CIDEr-D is not defined, and texts whose words no space parts."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Scripts that are written without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
_LETTERS = 6  # of such scripts in a token, in the mean: more than words have that somebody has parted


def undefined_metrics(references: Sequence[Sequence[str]]) -> dict[str, str]:
    """Metrics that are not defined for the references of these items, and why.

    CIDEr-D weighs an n-gram by the share of items whose references hold it: where all items have the same references,
    as a single item has, every weight is 0. SPIDEr is its mean with SPICE.
    """
    if len({frozenset(texts) for texts in references}) > 1:
        return {}
    number = "one item has" if len(references) == 1 else "items that all have the same references have"
    reason = f"not defined: {number} no idf (inverse document frequency); score a set of different items"
    return {"cider_d": reason, "spider": reason}


def word_notes(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """A sentence where at least half of the texts are written without spaces: each counts as one word."""
    texts = [*predictions, *(text for group in references for text in group)]
    count = sum(map(is_unspaced, texts))
    if not texts or 2 * count < len(texts):
        return []
    return [
        f"{count} of {len(texts)} texts are written without spaces (Chinese, Japanese, Thai ...), so that a sentence "
        "counts as one word; put spaces between their words (jieba, MeCab, PyThaiNLP) or characters first"
    ]


def is_unspaced(text: str) -> bool:
    """True for a text of several words, in a script without spaces, that nobody has put spaces between."""
    counts = [len(_UNSPACED.findall(token)) for token in text.split()]
    words = [count for count in counts if count]
    if not words:
        return False
    return sum(words) >= _LETTERS * len(words) or (len(counts) == 1 and words[0] > 2)
