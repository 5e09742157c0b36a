"""Packed texts and the plan of their targets, against loops over texts and tokens."""

from __future__ import annotations

import pytest
import torch

from mmprefix.kv_cache.packing import pack_texts, plan_targets

Texts = list[list[list[int]]]  # token ids of the texts of each input

CASES: dict[str, Texts] = {
    "one text": [[[4, 5, 6]]],
    "several texts": [[[4, 5], [6]], [[7, 8, 9]], [[1], [2], [3, 3]]],
    "an empty text": [[[], [4, 5]], [[6], []]],
    "an input without texts": [[[4]], [], [[5, 6]]],
    "empty texts alone": [[[]], [[], []]],
    "no input": [],
}


def packed_by_loop(rows: Texts) -> list[list[tuple[int, int, int]]]:
    """Id, text number and offset of each token of each input, in order, without padding."""
    return [[(token, n, i) for n, text in enumerate(texts) for i, token in enumerate(text)] for texts in rows]


def plan_by_loop(rows: Texts, question_lengths: list[list[int]]) -> list[tuple[int, int, int]]:
    """Predicting row, id and text of each target token."""
    plan, packed, number = [], len(rows), 0  # packed: the row of the first packed token of the text
    for b, texts in enumerate(rows):
        for n, text in enumerate(texts):
            for offset, token in enumerate(text):
                row = b if offset == 0 else packed + offset - 1
                if offset >= question_lengths[b][n]:
                    plan.append((row, token, number))
            packed += max(len(text) - 1, 0)  # the last token is not run
            number += 1
    return plan


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_texts_of_an_input_share_a_row(rows: Texts) -> None:
    packed, expected = pack_texts(rows), packed_by_loop(rows)
    assert packed.shape == (3, len(rows), max(map(len, expected), default=0))
    assert packed.dtype == torch.long
    for b, tokens in enumerate(expected):
        assert list(zip(*packed[:, b, : len(tokens)].tolist(), strict=True)) == tokens
        assert (packed[1, b, len(tokens) :] == -1).all()


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_each_token_is_predicted_by_the_row_before_it(rows: Texts) -> None:
    plan = plan_targets(rows)
    assert plan.shape[0] == 3
    assert [tuple(column) for column in plan.T.tolist()] == plan_by_loop(rows, [[0] * len(texts) for texts in rows])


def test_tokens_of_a_question_are_no_targets() -> None:
    rows: Texts = [[[4, 5, 6], [7, 8]], [[9, 1, 2, 3]]]
    lengths = [[2, 0], [3]]
    plan = plan_targets(rows, lengths)
    assert [tuple(column) for column in plan.T.tolist()] == plan_by_loop(rows, lengths)
    assert plan[1].tolist() == [6, 7, 8, 3]


def test_the_plan_points_at_the_packed_tokens() -> None:
    """After the B states, rows are the real packed tokens in order, each the token before its target."""
    rows: Texts = [[[4, 5, 6], [4]], [[7, 8]], [[1, 2, 3], [9, 9]]]
    packed = pack_texts([[text[:-1] for text in texts] for texts in rows])
    real = packed[0].flatten()[packed[1].flatten() >= 0].tolist()
    tokens = [text for texts in rows for text in texts]
    for row, target, text in plan_targets(rows).T.tolist():
        if row < len(rows):
            assert target == tokens[text][0]
        else:
            before = real[row - len(rows)]
            assert (before, target) in zip(tokens[text], tokens[text][1:], strict=False)
