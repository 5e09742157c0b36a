"""The reward of single texts: equal to CIDEr-D of the set, the same in every batch, and wary of unfinished texts."""

from __future__ import annotations

import random

import pytest

from mmprefix.metrics import caption
from mmprefix.metrics.cider_reward import CiderReward

WORDS = ["a", "dog", "runs", "over", "the", "green", "grass", "and", "one", "brown", "cat", "sits", "still", "."]


def sentences(count: int, draw: random.Random) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_metric_of_the_set_that_the_frequencies_come_from(seed: int) -> None:
    draw = random.Random(seed)
    references = [sentences(draw.randint(1, 5), draw) for _ in range(8)]
    predictions = sentences(8, draw)
    reward = CiderReward(references, end=False)
    own = [reward(text, texts) for text, texts in zip(predictions, references, strict=True)]
    assert sum(own) / 8 == pytest.approx(caption(predictions, references)["cider_d"])


def test_does_not_depend_on_other_texts_that_are_scored() -> None:
    references = [["a dog runs over the grass"], ["a cat sits still"], ["two birds fly"]]
    reward = CiderReward(references)
    first = reward("a dog runs", references[0])
    reward("a cat sits still", references[1])
    assert reward("a dog runs", references[0]) == first > 0


def test_a_whole_sentence_is_worth_more_than_its_beginning_with_a_loose_end() -> None:
    references = [["a dog runs over the grass"], ["a cat sits still"], ["two birds fly over the grass"]]
    assert CiderReward(references)("a dog runs over the grass", references[0]) == pytest.approx(10)
    with_end, without = CiderReward(references), CiderReward(references, end=False)
    loose = "a dog runs over the"
    assert with_end(loose, references[0]) < without(loose, references[0])


def test_empty_texts_and_no_references_score_nothing() -> None:
    reward = CiderReward([["a dog"], ["a cat"]], end=False)
    assert reward("", ["a dog"]) == 0
    assert reward("a dog", []) == 0
