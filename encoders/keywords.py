"""Keywords of a user's own texts by TF-IDF, read by an encoder of texts: the user context of UAPT.

User-Aware Prefix-Tuning (Wang et al. 2023), https://arxiv.org/abs/2312.04793, picks a user's words by TF-IDF over the
user's posts. How many, and from which vocabulary, is not known; attend2u, whose data it uses, keeps 100 of 40,000
(Park, Kim, Kim 2017, https://arxiv.org/abs/1704.06485). The weights are those of scikit-learn's TfidfVectorizer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mmprefix.encoders.base import Encoder, Preprocess
from mmprefix.errors import InputError
from mmprefix.media.source import Source, Texts, read_text
from mmprefix.types import Features, Media
from mmprefix.weights.dry_run import sizes_only
from mmprefix.weights.untrusted import fetch_file

log = logging.getLogger(__name__)

WORD = r"[^\s.,!?;:()\"]+"
"""A word: what stands between white space and these marks. Hashtags, names and emoji are words."""

NOTHING = "-"  # read where no word of the texts is known


def keyword_weights(texts: Sequence[str], idf: Mapping[str, float]) -> dict[str, float]:
    """TF-IDF of each known word in all ``texts`` together, scaled to length 1: the largest first, then by the alphabet.

    ``idf`` holds the words that are known. Without any of them the result is empty.
    """
    counts = Counter(word for text in texts for word in re.findall(WORD, text.lower()) if word in idf)
    weights = {word: count * idf[word] for word, count in counts.items()}
    length = math.sqrt(sum(weight**2 for weight in weights.values()))
    return {word: weights[word] / length for word in sorted(weights, key=lambda word: (-weights[word], word))}


@dataclass(frozen=True)
class ReadKeywords:
    """Preprocessing of ``Keywords``: texts → their ``top`` keywords joined by ", ", through ``text``."""

    text: Preprocess
    top: int
    words: str  # hash of the known words and their weights
    idf: Mapping[str, float] = field(repr=False, compare=False)

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """Texts → token ids (N,), int64. InputError for an empty text."""
        read_text(source)  # refuses what is none
        texts = source.texts if isinstance(source, Texts) else ()
        keywords = list(keyword_weights(texts, self.idf))[: self.top]
        return self.text(Texts((", ".join(keywords) or NOTHING,)), 0.0, None)


class Keywords(Encoder):
    """Frozen encoder of texts that reads the ``top`` keywords of an input's texts in place of the texts.

    ``words`` is a file of recipes/prepare/keywords.py, fit on the training users: a JSON object with the inverse
    document frequency of each word. A saved model holds its content, so that it needs no file. Texts that hold none of
    these words are read as a single dash.

    Args:
        encoder: an encoder of texts (``Text``).
        words: the file, or the object itself.
        top: keywords of an input, at most.
    """

    input_kind = "text"
    wraps = "encoder"

    def __init__(self, encoder: Encoder, words: str | dict[str, float], top: int = 100) -> None:
        super().__init__()
        if encoder.input_kind != "text":
            raise InputError(f"Keywords.encoder: {type(encoder).__name__} reads {encoder.input_kind}, not text")
        if top < 1:
            raise InputError(f"Keywords.top {top}: give a number from 1 on")
        idf = _known_words(words) if isinstance(words, str) else checked_idf(words, "Keywords.words")
        digest = hashlib.sha256(json.dumps(sorted(idf.items())).encode()).hexdigest()[:16]
        self.init_args["words"] = idf  # a recipe of this encoder needs no file
        self.encoder = encoder
        self.preprocess = ReadKeywords(encoder.preprocess, top, digest, idf)
        self.dim, self.pooled_dim, self.identity = encoder.dim, encoder.pooled_dim, encoder.identity
        self.freeze()

    def encode(self, media: Media) -> Features:
        """Token ids of the keywords (B N) → frames (B T D), mask (B T), and the summary (B G)."""
        return self.encoder.encode(media)


def _known_words(file: str) -> dict[str, float]:
    """Inverse document frequencies of a file; a placeholder in a dry run without the file."""
    if sizes_only() and not Path(file).exists():
        log.warning("%s does not exist yet (recipes/prepare/keywords.py writes it): no word is known", file)
        return {NOTHING: 1.0}
    return read_idf(fetch_file(file))


def read_idf(file: str | Path) -> dict[str, float]:
    """Inverse document frequencies by word, of a file of recipes/prepare/keywords.py; InputError for anything else."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: the keywords cannot be read ({error})") from error
    return checked_idf(content.get("idf") if isinstance(content, dict) else None, str(file))


def checked_idf(values: object, name: str) -> dict[str, float]:
    """Inverse document frequencies by word; InputError with ``name`` for anything but positive numbers by word."""
    items = values if isinstance(values, dict) else {}
    good = all(isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in items.values())
    if not good or not items:
        raise InputError(f"{name}: is no file of keywords; recipes/prepare/keywords.py writes one")
    return {str(word): float(value) for word, value in items.items()}
