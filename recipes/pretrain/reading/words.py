"""Groups of sentences and of words by counting alone: what a reader is asked for without labels.

A sentence is the words and the pairs of neighbours in it, weighed by rareness (tf-idf, Spärck Jones 1972) and squeezed
to few dimensions (latent semantic analysis, Deerwester et al. 1990); a word is the neighbours it stands between
(pointwise mutual information, Church and Hanks 1990). Groups of both come from k-means on the sphere.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mmprefix.errors import InputError

Words = list[str]

FEWEST = 20  # requests: with fewer there are no groups, and no words that a sentence does not hold


def feature_table(sentences: Sequence[Words]) -> tuple[Tensor, list[str]]:
    """Weights (N F) of the F words and pairs of neighbours that two sentences or more hold, and these features."""
    held = [{*words, *(f"{a} {b}" for a, b in pairwise(["^", *words, "$"]))} for words in sentences]
    counts = Counter(feature for features in held for feature in sorted(features))
    features = [feature for feature, count in counts.items() if count > 1]
    column = {feature: index for index, feature in enumerate(features)}
    table = torch.zeros(len(sentences), len(features))
    for row, own in enumerate(held):
        for feature in own & column.keys():
            share = 0.4 if " " in feature else 1.0
            table[row, column[feature]] = share * math.log(len(sentences) / counts[feature])
    return table, features


def view(table: Tensor, features: Sequence[str], groups: int, seed: int) -> list[str]:
    """Names of the groups of the N sentences of a table (N F), sorted in one way; a name is the most telling words.

    Every seed weighs the features anew, so that no two views agree. No two groups of a view share a name.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.exp(0.4 * torch.randn(table.shape[1], generator=generator))
    group = cluster(squeeze(table * weight, 150, seed), groups, seed)
    present = (table > 0).float()
    inside = torch.zeros(groups, table.shape[1]).index_add(0, group, present)
    inside = inside / group.bincount(minlength=groups).clamp(min=1)[:, None]
    telling = inside.sqrt() * ((inside + 1e-3) / (present.mean(0) + 1e-3)).log()
    pairs = torch.tensor([" " in feature for feature in features])
    names: list[str] = []
    best: list[int]
    for best in telling.masked_fill(pairs, -1).topk(min(8, len(features))).indices.tolist():
        words = [features[index] for index in best]
        longer = (" ".join(words[:count]) for count in range(1, len(words) + 1))
        names.append(next((name for name in longer if name not in names), f"{words[0]} {len(names)}"))
    return [names[index] for index in group.tolist()]


def nearest(table: Tensor, count: int) -> list[list[int]]:
    """Find the ``count`` sentences most like each of the N sentences of a table (N F); indices, the nearest first."""
    rows = squeeze(table, 200, 0)
    neighbours: list[list[int]] = []
    for first, part in enumerate(rows.split(512)):
        like = part @ rows.T
        like[torch.arange(len(part)), first * 512 + torch.arange(len(part))] = -2  # never itself
        neighbours += like.topk(min(count, len(rows) - 1)).indices.tolist()
    return neighbours


def word_kinds(sentences: Sequence[Words], groups: int, seed: int) -> dict[str, int]:
    """Kind of each word that occurs three times or more: words of a kind stand between the same neighbours."""
    counts = Counter(word for words in sentences for word in words)
    row = {word: index for index, word in enumerate(word for word, count in counts.items() if count > 2)}
    column = {word: index for index, word in enumerate(["^", *(word for word, _ in counts.most_common(500))])}
    width = len(column) + 1  # the last for all other words
    table = torch.zeros(len(row), 4 * width)
    for words in sentences:
        padded = ["^", "^", *words, "^", "^"]
        for index, word in enumerate(words):
            for side, step in enumerate((0, 1, 3, 4) if word in row else ()):
                near = 1.0 if step in (1, 3) else 0.5
                table[row[word], side * width + column.get(padded[index + step], width - 1)] += near
    share = table / table.sum().clamp(min=1)
    columns = share.sum(0) ** 0.75
    expected = share.sum(1, keepdim=True) * columns / columns.sum()
    information = (share / expected.clamp(min=1e-12)).clamp(min=1).log()
    kinds = cluster(squeeze(information, 60, seed), groups, seed).tolist()
    return dict(zip(row, kinds, strict=True))


def squeeze(rows: Tensor, dimensions: int, seed: int) -> Tensor:
    """Rows (N F) projected to their strongest ``dimensions``, at most, by a truncated SVD; of unit length."""
    torch.manual_seed(seed)
    rows = _unit(rows)
    u, s, _ = torch.svd_lowrank(rows, min(dimensions, *rows.shape), niter=3)
    return _unit(u * s)


def cluster(rows: Tensor, groups: int, seed: int, rounds: int = 12) -> Tensor:
    """Group (N,) of each of the rows (N D) of unit length, by k-means; at most ``groups``."""
    generator = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=generator)[:groups]]
    group = (rows @ centres.T).argmax(1)
    for _ in range(rounds - 1):
        centres = _unit(torch.zeros_like(centres).index_add(0, group, rows))
        group = (rows @ centres.T).argmax(1)
    return group


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True)
class Corpus:
    """Sentences and their statistics.

    ``requests`` are orders to a device · ``misheard`` spoiled forms of some, by their index · ``general`` other
    sentences · ``counts`` of the words of requests · ``kinds`` ways to sort words, ``views`` ways to sort requests
    (the name of each one's group) · ``near`` the indices of the requests most like each.
    """

    requests: list[Words]
    misheard: dict[int, list[Words]]
    general: list[Words]
    counts: Counter[str]
    kinds: list[dict[str, int]]
    views: list[list[str]]
    near: list[list[int]]


def build_corpus(
    requests: list[Words], misheard: dict[int, list[Words]], general: list[Words], *, views: int, seed: int
) -> Corpus:
    """Sort words and requests. Raises InputError when there are too few requests or no general sentence."""
    if len(requests) < FEWEST:
        raise InputError(f"{len(requests)} requests in the training split: {FEWEST} or more are needed")
    if not general:
        raise InputError("--captions: no sentence of 3 to 20 words in the training split")
    table, features = feature_table(requests)
    pick = random.Random(seed)
    sorts = [(pick.choice((40, 80, 160, 240)), pick.randrange(2**31)) for _ in range(views)]
    return Corpus(
        requests,
        misheard,
        general,
        Counter(word for words in requests for word in words),
        [word_kinds(requests, groups, seed) for groups in (40, 80, 120)],
        [view(table, features, groups, own) for groups, own in sorts],
        nearest(table, 12),
    )
