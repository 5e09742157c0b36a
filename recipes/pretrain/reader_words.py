"""Groups of sentences and of words that are found by counting: what a reader is asked for where nobody gave labels.

A sentence is the words and the pairs of neighbours in it, weighed by rareness (tf-idf, Spärck Jones 1972) and squeezed
to few dimensions (latent semantic analysis, Deerwester et al. 1990); a word is the neighbours it stands between
(pointwise mutual information, Church and Hanks 1990). Groups of both come from k-means on the sphere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

Words = list[str]


def feature_table(sentences: Sequence[Words]) -> tuple[Tensor, list[str]]:
    """The weights (N F) of the F words and pairs of neighbours that two sentences or more hold, and these features."""
    held = [{*words, *(f"{a} {b}" for a, b in pairwise(["^", *words, "$"]))} for words in sentences]
    counts = Counter(feature for features in held for feature in sorted(features))
    features = [feature for feature, count in counts.items() if count > 1]
    column = {feature: index for index, feature in enumerate(features)}
    table = torch.zeros(len(sentences), len(features))
    for row, found in enumerate(held):
        for feature in found & column.keys():
            share = 0.4 if " " in feature else 1.0
            table[row, column[feature]] = share * math.log(len(sentences) / counts[feature])
    return table, features


def view(table: Tensor, features: Sequence[str], groups: int, seed: int) -> list[str]:
    """One way to sort the N sentences of a table (N F): the name of each one's group, its most telling words.

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
    """The ``count`` sentences most like each of the N sentences of a table (N F), the nearest first."""
    rows = squeeze(table, 200, 0)
    found: list[list[int]] = []
    for first, part in enumerate(rows.split(512)):
        like = part @ rows.T
        like[torch.arange(len(part)), first * 512 + torch.arange(len(part))] = -2  # never itself
        found += like.topk(min(count, len(rows) - 1)).indices.tolist()
    return found


def word_kinds(sentences: Sequence[Words], groups: int, seed: int) -> dict[str, int]:
    """The kind of each word that occurs three times or more: words of a kind stand between the same neighbours."""
    counts = Counter(word for words in sentences for word in words)
    row = {word: index for index, word in enumerate(word for word, count in counts.items() if count > 2)}
    column = {word: index for index, word in enumerate(["^", *(word for word, _ in counts.most_common(500))])}
    width = len(column) + 1  # the last for all other words
    table = torch.zeros(len(row), 4 * width)
    for words in sentences:
        padded = ["^", "^", *words, "^", "^"]
        for place, word in enumerate(words):
            for side, step in enumerate((0, 1, 3, 4) if word in row else ()):
                near = 1.0 if step in (1, 3) else 0.5
                table[row[word], side * width + column.get(padded[place + step], width - 1)] += near
    share = table / table.sum().clamp(min=1)
    columns = share.sum(0) ** 0.75
    expected = share.sum(1, keepdim=True) * columns / columns.sum()
    information = (share / expected.clamp(min=1e-12)).clamp(min=1).log()
    kinds = cluster(squeeze(information, 60, seed), groups, seed).tolist()
    return dict(zip(row, kinds, strict=True))


def squeeze(rows: Tensor, dimensions: int, seed: int) -> Tensor:
    """Rows (N F) of unit length, turned to their strongest ``dimensions``, at most: again of unit length."""
    torch.manual_seed(seed)
    rows = _unit(rows)
    u, s, _ = torch.svd_lowrank(rows, min(dimensions, *rows.shape), niter=3)
    return _unit(u * s)


def cluster(rows: Tensor, groups: int, seed: int, rounds: int = 12) -> Tensor:
    """k-means of rows (N D) of unit length: the group (N,) of each, of at most ``groups``."""
    generator = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=generator)[:groups]]
    group = (rows @ centres.T).argmax(1)
    for _ in range(rounds - 1):
        centres = _unit(torch.zeros_like(centres).index_add(0, group, rows))
        group = (rows @ centres.T).argmax(1)
    return group


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)
