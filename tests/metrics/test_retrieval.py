"""Recall at k against ranks counted one query at a time; ties find nothing."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from mmprefix.metrics.retrieval import both_ways, recalls


def test_recall_counts_the_items_before_the_first_right_one() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.7], [0.3, 0.2, 0.1]])
    right = torch.tensor([[True, False, False], [True, False, False], [False, False, True]])
    recall = recalls(scores, right, (1, 2, 3))
    assert [round(recall[f"r@{k}"] * 3) for k in (1, 2, 3)] == [1, 1, 3]


def test_the_best_of_several_right_items_counts() -> None:
    assert recalls(torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[True, False, True]]), (1, 2)) == {
        "r@1": 0.0,
        "r@2": 1.0,
    }


def test_equal_vectors_find_nothing() -> None:
    same = torch.ones(4, 3)
    assert both_ways(same, same, torch.arange(4), (1, 3)) == {
        "image_to_text/r@1": 0.0,
        "image_to_text/r@3": 0.0,
        "text_to_image/r@1": 0.0,
        "text_to_image/r@3": 0.0,
    }


def test_both_ways_equal_ranks_counted_one_by_one() -> None:
    torch.manual_seed(0)
    pictures, texts, owner = torch.randn(6, 5), torch.randn(13, 5), torch.arange(13) % 6
    forth, back = [], []
    for number, picture in enumerate(pictures):
        order = sorted(range(13), key=lambda text: -float(cosine_similarity(picture, texts[text], dim=0)))
        forth.append(min(order.index(text) for text in range(13) if owner[text] == number))
    for number, text in enumerate(texts):
        order = sorted(range(6), key=lambda picture: -float(cosine_similarity(pictures[picture], text, dim=0)))
        back.append(order.index(int(owner[number])))
    recall = both_ways(pictures, texts, owner, (1, 3))
    for k in (1, 3):
        assert round(recall[f"image_to_text/r@{k}"] * 6) == sum(rank < k for rank in forth)
        assert round(recall[f"text_to_image/r@{k}"] * 13) == sum(rank < k for rank in back)
