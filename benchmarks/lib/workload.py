"""Captions of realistic lengths without a data set, and the batches that training would draw from them.

Lengths follow 7 + Gamma(2.78, 1.8) tokens, end of text included: mean 12, deviation 3, and a right tail that
reaches 40 about once in the 600 000 captions of COCO. That is the shape of COCO's captions in GPT-2 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmprefix.data.samplers import POOL, BucketSampler, RowKey
from mmprefix.types import Features

LONGEST = 40  # tokens; to what a data set's longest caption would pad every batch


def take(features: Features, rows: Sequence[int]) -> Features:
    """The features of some inputs, which may come several times."""
    return Features(features.frames[rows], features.mask[rows], features.pooled[rows])


@dataclass(frozen=True)
class Captioned:
    """B inputs: their features, and the captions of each, words parted by spaces."""

    features: Features
    texts: list[list[str]]

    @property
    def lengths(self) -> list[list[int]]:
        """Tokens of each caption, the end of text included."""
        return [[text.count(" ") + 2 for text in texts] for texts in self.texts]

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.lengths))

    def apart(self) -> Captioned:
        """The same captions, each with an input of its own."""
        owners = [row for row, texts in enumerate(self.texts) for _ in texts]
        return Captioned(take(self.features, owners), [[text] for texts in self.texts for text in texts])

    def to(self, where: torch.dtype | str) -> Captioned:
        """The same with features of another type, or on another device."""
        features = self.features
        mask = features.mask.to(where) if isinstance(where, str) else features.mask
        return Captioned(Features(features.frames.to(where), mask, features.pooled.to(where)), self.texts)

    def run(self) -> tuple[int, int]:
        """Text positions that a decoder must run, and that it does run with the captions of an input in one row."""
        rows = [sum(n - 1 for n in lengths) for lengths in self.lengths]  # the last token of a caption predicts nothing
        return sum(rows), len(rows) * max(rows)


@dataclass(frozen=True)
class Draws:
    """The batches to measure: one of middle length, and a pool of ``bucketed`` ones beside ``random`` ones.

    Both sides of the pool hold the very same captions, so that their sums of losses and gradients are the same.
    """

    middle: Captioned
    bucketed: list[Captioned]
    random: list[Captioned]

    def to(self, device: str) -> Draws:
        """The same with all features on ``device``."""
        bucketed, dealt = ([batch.to(device) for batch in pool] for pool in (self.bucketed, self.random))
        return Draws(self.middle.to(device), bucketed, dealt)


def draw(
    captions: int,
    batch: int,
    vocabulary: int,
    features: Callable[[np.random.Generator, int], Features],
    pool: int,
    seed: int = 0,
    mean: int = 12,
) -> Draws:
    """Batches of ``batch`` captions, ``captions`` an input, of words 1 to ``vocabulary`` - 2.

    As many inputs as the sampler sorts at once are drawn and put into batches by it; ``features`` draws so many. The
    pool takes ``pool`` of these batches, evenly spaced in length; its random side deals their inputs out again without
    regard to length. ``mean`` moves the lengths, which keep their spread; 40 tokens stay the most.
    """
    random = np.random.default_rng(seed)
    inputs = batch // captions
    lengths = mean - 5 + random.gamma(2.78, 1.8, (POOL * inputs, captions))
    counts = np.clip(lengths.round().astype(int), 2, LONGEST)
    texts = [[" ".join(f"w{i}" for i in random.integers(1, vocabulary - 1, n - 1)) for n in row] for row in counts]
    drawn = features(random, len(texts))

    def some(rows: list[int]) -> Captioned:
        return Captioned(take(drawn, rows), [texts[row] for row in rows])

    keys = [
        RowKey(frozenset({"image"}), 0.0, captions, sum(map(len, row))) for row in texts
    ]  # as mmprefix.data.index has it
    batches = sorted((d.rows for d in BucketSampler(keys, inputs, seed=seed).batches(0)), key=lambda r: counts[r].sum())
    middle = [batches[int((i + 0.5) / pool * len(batches))] for i in range(pool)]
    shuffled = random.permutation(np.concatenate(middle)).tolist()
    dealt = [shuffled[start : start + inputs] for start in range(0, len(shuffled), inputs)]
    return Draws(some(batches[len(batches) // 2]), [some(rows) for rows in middle], [some(rows) for rows in dealt])
