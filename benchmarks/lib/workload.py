"""Synthetic captions of realistic lengths, and the batches that training would draw from them.

Lengths follow 7 + Gamma(2.78, 1.8) tokens, end of text included: mean 12, deviation 3, and a right tail that
reaches 40 about once in the 600 000 captions of COCO. That is the shape of COCO's captions in GPT-2 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmprefix.data.samplers import POOL, BucketSampler, RowKey
from mmprefix.types import Features

LONGEST = 40  # tokens of a data set's longest caption, to which the published programs pad every batch


def select_rows(features: Features, rows: Sequence[int]) -> Features:
    """The features of inputs ``rows``, in this order; an input may come several times."""
    return Features(features.frames[rows], features.mask[rows], features.pooled[rows])


@dataclass(frozen=True)
class CaptionBatch:
    """B inputs: their features, and the captions of each, words parted by spaces."""

    features: Features
    texts: list[list[str]]

    @property
    def lengths(self) -> list[list[int]]:
        """Tokens of each caption, the end of text included."""
        return [[text.count(" ") + 2 for text in texts] for texts in self.texts]

    @property
    def tokens(self) -> int:
        """Tokens of all captions together."""
        return sum(map(sum, self.lengths))

    def one_caption_per_input(self) -> CaptionBatch:
        """The captions of this batch, each with its own copy of its input's features."""
        owners = [row for row, texts in enumerate(self.texts) for _ in texts]
        return CaptionBatch(select_rows(self.features, owners), [[text] for texts in self.texts for text in texts])

    def to(self, target: torch.dtype | str) -> CaptionBatch:
        """This batch with features of another type, or on another device."""
        features = self.features
        mask = features.mask.to(target) if isinstance(target, str) else features.mask
        return CaptionBatch(Features(features.frames.to(target), mask, features.pooled.to(target)), self.texts)

    def worded(self, words: Sequence[str]) -> CaptionBatch:
        """This batch with ``words[7]`` for "w7" and so on."""
        texts = [[" ".join(words[int(word[1:])] for word in text.split()) for text in own] for own in self.texts]
        return replace(self, texts=texts)

    def text_positions(self) -> tuple[int, int]:
        """Text positions that a decoder must run, and those that it runs with an input's captions in one padded row."""
        rows = [sum(n - 1 for n in lengths) for lengths in self.lengths]  # the last token of a caption predicts nothing
        return sum(rows), len(rows) * max(rows)


@dataclass(frozen=True)
class Workload:
    """Batches to measure: one of median length, and a pool of ``bucketed`` and of ``shuffled`` batches.

    Both sides of the pool hold the very same captions, so that their sums of losses and gradients are the same.
    """

    median: CaptionBatch
    bucketed: list[CaptionBatch]
    shuffled: list[CaptionBatch]

    def to(self, device: str) -> Workload:
        """This workload with all features on ``device``."""
        bucketed, shuffled = ([batch.to(device) for batch in pool] for pool in (self.bucketed, self.shuffled))
        return Workload(self.median.to(device), bucketed, shuffled)

    def worded(self, words: Sequence[str]) -> Workload:
        """This workload with ``words[7]`` for "w7" and so on."""
        bucketed, shuffled = ([batch.worded(words) for batch in pool] for pool in (self.bucketed, self.shuffled))
        return Workload(self.median.worded(words), bucketed, shuffled)


def draw_workload(
    captions: int,
    batch: int,
    vocabulary: int,
    features: Callable[[np.random.Generator, int], Features],
    *,
    pool: int,
    seed: int = 0,
    mean: int = 12,
) -> Workload:
    """Batches of ``batch`` captions, ``captions`` an input, of words 1 to ``vocabulary`` - 2.

    As many inputs as mmprefix's bucket sampler sorts at once are drawn, and the sampler puts them into batches;
    ``features(random, n)`` draws those of n inputs. The pool takes ``pool`` of these batches, evenly spaced in length;
    its shuffled side distributes their inputs anew without regard to length. ``mean`` moves the lengths, which keep
    their spread; 40 tokens stay the most.
    """
    random = np.random.default_rng(seed)
    inputs = batch // captions
    lengths = mean - 5 + random.gamma(2.78, 1.8, (POOL * inputs, captions))
    counts = np.clip(lengths.round().astype(int), 2, LONGEST)
    texts = [[" ".join(f"w{i}" for i in random.integers(1, vocabulary - 1, n - 1)) for n in row] for row in counts]
    all_features = features(random, len(texts))

    def batch_of(rows: list[int]) -> CaptionBatch:
        return CaptionBatch(select_rows(all_features, rows), [texts[row] for row in rows])

    # keys as mmprefix.data.index makes them for a manifest
    keys = [RowKey(frozenset({"image"}), 0.0, captions, sum(map(len, row))) for row in texts]
    batches = [step.rows for step in BucketSampler(keys, inputs, seed=seed).batches(0)]
    batches.sort(key=lambda rows: counts[rows].sum())
    bucketed = [batches[int((i + 0.5) / pool * len(batches))] for i in range(pool)]
    order = random.permutation([row for rows in bucketed for row in rows]).tolist()
    shuffled = [order[start : start + inputs] for start in range(0, len(order), inputs)]
    sides = ([batch_of(rows) for rows in side] for side in (bucketed, shuffled))
    return Workload(batch_of(batches[len(batches) // 2]), *sides)
