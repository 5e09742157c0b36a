"""N-gram tables against plain counting with dictionaries, at the ends of texts and of sets."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from mmprefix.metrics.ngrams import ORDERS, NgramCounts, count_ngrams, distinct, lookup

Texts = list[list[str]]


def plain_counts(text: list[str], order: int) -> Counter[tuple[str, ...]]:
    """Count of each n-gram of a text, one slice after the other."""
    return Counter(tuple(text[start : start + order]) for start in range(len(text) - order + 1))


def assert_counts(counts: NgramCounts, texts: Texts) -> None:
    """Each table holds the plain counts of each of ``texts``, and one number for each different n-gram of the set."""
    for order, table in zip(ORDERS, counts.tables, strict=True):
        plain = [plain_counts(text, order) for text in texts]
        names: dict[int, tuple[str, ...]] = {}
        for number, expected in enumerate(plain):
            rows = np.flatnonzero(table.text == number)
            assert sorted(table.count[rows]) == sorted(expected.values())
            assert len(set(table.ngram[rows])) == len(rows)
        # A number names one n-gram: the texts that hold it, and how often, are those of exactly one n-gram.
        profiles = {gram: [own[gram] for own in plain] for own in plain for gram in own}
        for number in set(table.ngram.tolist()):
            rows = np.flatnonzero(table.ngram == number)
            profile = [0] * len(texts)
            for text, count in zip(table.text[rows], table.count[rows], strict=True):
                profile[text] = int(count)
            matching = [gram for gram, own in profiles.items() if own == profile and gram not in names.values()]
            assert matching, (order, profile)
            names[number] = matching[0]
        assert len(names) == table.ngrams == len(profiles)
        assert len(table.text) == len(table.ngram) == len(table.count)
        keys = table.text * max(1, table.ngrams) + table.ngram
        assert (np.diff(keys) > 0).all()  # sorted by text, then n-gram, each pair once


@pytest.mark.parametrize("seed", range(20))
def test_tables_equal_plain_counting(seed: int) -> None:
    rng = random.Random(seed)

    def text() -> list[str]:
        return [rng.choice("abcd") for _ in range(rng.randrange(9))]

    predictions = [text() for _ in range(rng.randrange(1, 6))]
    references = [[text() for _ in range(rng.randrange(1, 4))] for _ in predictions]
    counts = count_ngrams(predictions, references)
    texts = [*predictions, *(other for item in references for other in item)]
    assert counts.items == len(predictions)
    assert counts.length.tolist() == [len(text) for text in texts]
    owners = [item for item, several in enumerate(references) for _ in several]
    assert counts.owner.tolist() == [*range(len(predictions)), *owners]
    assert_counts(counts, texts)


def test_no_ngram_spans_two_texts() -> None:
    counts = count_ngrams([["a", "b"], ["c", "d"]], [[["e"]], [["f", "g", "h"]]])
    assert [int(table.count.sum()) for table in counts.tables] == [2 + 2 + 1 + 3, 1 + 1 + 0 + 2, 1, 0]
    assert_counts(counts, [["a", "b"], ["c", "d"], ["e"], ["f", "g", "h"]])


def test_the_same_words_in_another_order_are_other_ngrams() -> None:
    """Numbers of an n-gram's parts are packed into one: "a b" and "b a", "a a b" and "a b b" stay apart."""
    counts = count_ngrams([["a", "b"], ["a", "a", "b"]], [[["b", "a"]], [["a", "b", "b"]]])
    assert [table.ngrams for table in counts.tables] == [2, 4, 2, 0]


def test_a_large_vocabulary_keeps_ngrams_apart() -> None:
    words = [f"w{number}" for number in range(3000)]
    random.Random(1).shuffle(words)
    counts = count_ngrams([words], [[words[::-1]]])
    assert [table.ngrams for table in counts.tables] == [3000, 2 * 2999, 2 * 2998, 2 * 2997]


@pytest.mark.parametrize("length", range(6))
def test_texts_as_short_as_an_order(length: int) -> None:
    text = list("abcde"[:length])
    counts = count_ngrams([text], [[[]]])
    assert [len(table.count) for table in counts.tables] == [max(0, length - order + 1) for order in ORDERS]
    assert [distinct(counts, order) for order in ORDERS] == [float(length >= order) for order in ORDERS]


def test_lookup_finds_what_is_there() -> None:
    keys = np.asarray([2, 3, 7, 20])
    wanted = np.asarray([20, 1, 2, 8, 7, 21, 3])
    index, present = lookup(keys, wanted)
    assert present.tolist() == [True, False, True, False, True, False, True]
    assert keys[index[present]].tolist() == [20, 2, 7, 3]
    assert index.max() < len(keys)  # also past the last key: callers index with it before they mask


def test_lookup_in_nothing_and_of_nothing() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    index, present = lookup(nothing, np.asarray([0, 5]))
    assert (index.tolist(), present.tolist()) == ([0, 0], [False, False])
    index, present = lookup(np.asarray([0, 5]), nothing)
    assert (len(index), len(present)) == (0, 0)


@pytest.mark.parametrize("order", ORDERS)
def test_distinct_counts_predictions_alone(order: int) -> None:
    rng = random.Random(order)
    predictions = [[rng.choice("abc") for _ in range(rng.randrange(8))] for _ in range(12)]
    references = [[[rng.choice("xyz") for _ in range(6)]] for _ in predictions]  # other n-grams, none of which counts
    grams = [gram for text in predictions for gram in plain_counts(text, order).elements()]
    assert distinct(count_ngrams(predictions, references), order) == pytest.approx(len(set(grams)) / len(grams))
