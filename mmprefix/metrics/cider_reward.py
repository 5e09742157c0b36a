"""CIDEr-D of single texts, with the document frequencies of a fixed set: a reward for training.

``mmprefix.metrics.cider`` scores whole sets, whose references make the document frequencies. Here those of the training
captions are counted once, so that a text scores the same in every batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mmprefix.metrics.cider import SCALE, SIGMA
from mmprefix.metrics.ngrams import ORDERS
from mmprefix.metrics.ptb_tokenizer import ptb_tokens

END = "</s>"  # counted as a word, or the reward would not tell a whole sentence from its beginning

_Ngrams = Counter[tuple[str, ...]]


class CiderReward:
    """Score of a text against its references, CIDEr-D of Vedantam et al. 2015 (https://arxiv.org/abs/1411.5726).

    Args:
        references: texts of each item of the set that the document frequencies come from.
        end: count the end of a text as a word, as training on this reward needs.
    """

    def __init__(self, references: Sequence[Sequence[str]], *, end: bool = True) -> None:
        self.end = end
        self._holding: _Ngrams = Counter()
        for texts in references:
            self._holding.update({ngram for text in texts for ngram in self._count(self._tokens(text))})
        self._log_items = math.log(max(1, len(references)))
        self._known: dict[str, tuple[list[dict[tuple[str, ...], float]], list[float], int]] = {}

    def __call__(self, text: str, references: Sequence[str]) -> float:
        """Score of ``text``, 0 to 10; of an empty list of ``references`` 0."""
        vectors, norms, length = self._vectors(text)
        scores: list[float] = []
        for reference in references:
            theirs, their_norms, their_length = self._reference(reference)
            cosines = [
                sum(min(ours.get(ngram, 0.0), weight) * weight for ngram, weight in other.items()) / (norm * other_norm)
                for ours, norm, other, other_norm in zip(vectors, norms, theirs, their_norms, strict=True)
                if norm * other_norm > 0
            ]
            closeness = math.exp(-((length - their_length) ** 2) / (2 * SIGMA**2))
            scores.append(sum(cosines) / len(ORDERS) * closeness)
        return SCALE * sum(scores) / len(scores) if scores else 0.0

    def _tokens(self, text: str) -> list[str]:
        return [*ptb_tokens(text), *([END] if self.end else [])]

    @staticmethod
    def _count(tokens: Sequence[str]) -> _Ngrams:
        spans = (tuple(tokens[i : i + order]) for order in ORDERS for i in range(len(tokens) - order + 1))
        return Counter(spans)

    def _vectors(self, text: str) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """TF-IDF weights by n-gram length, their norms, and the number of bigrams."""
        tokens = self._tokens(text)
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in ORDERS]
        for ngram, count in self._count(tokens).items():
            idf = self._log_items - math.log(max(1, self._holding[ngram]))
            vectors[len(ngram) - 1][ngram] = count * idf
        norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors]
        return vectors, norms, max(0, len(tokens) - 1)

    def _reference(self, text: str) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """Vectors of a reference, kept: each is met in every epoch."""
        if text not in self._known:
            self._known[text] = self._vectors(text)
        return self._known[text]
