"""Types of a Predictor's results, as pyright sees them: one input, one text; several, a list. CI checks this file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

from mmprefix import Candidate, Predictor


def test_one_input_gives_one_result_and_several_give_a_list(model: Predictor, files: list[Path]) -> None:
    def generator() -> Iterator[Path]:
        yield from files[:2]

    text = assert_type(model(files[0]), str)
    assert isinstance(text, str)
    assert assert_type(model(str(files[0])), str) == text
    assert assert_type(model(files[0].read_bytes()), str) == text
    several = assert_type(model(files[:2]), list[str])
    assert several[0] == text
    assert assert_type(model((files[0], files[1])), list[str]) == several
    assert assert_type(model(generator()), list[str]) == several
    assert assert_type(model(files[:1]), list[str]) == [text]

    best = assert_type(model.candidates(files[0]), list[Candidate])
    assert [type(candidate) for candidate in best] == [Candidate] * 3
    rows = assert_type(model.candidates(files[:2], num_return=2), list[list[Candidate]])
    assert [len(row) for row in rows] == [2, 2]
    assert [candidate.text for candidate in model.candidates(generator(), num_return=1)[0]] == [text]
