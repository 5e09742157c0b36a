"""Prefetch: results in order, computed one ahead in another thread, errors raised in their turn."""

from __future__ import annotations

import threading

import pytest

from mmprefix.inference.batched import prefetch


def test_results_come_in_order() -> None:
    assert list(prefetch(lambda n: n * n, range(7))) == [n * n for n in range(7)]
    assert list(prefetch(lambda n: n, [])) == []


def test_the_next_result_is_computed_before_it_is_asked_for() -> None:
    started = [threading.Event() for _ in range(3)]

    def make(number: int) -> int:
        started[number].set()
        return number

    results = prefetch(make, range(3))
    assert next(results) == 0
    assert started[1].wait(10)  # before next() asks for it
    assert not started[2].is_set()
    assert list(results) == [1, 2]


def test_an_error_is_raised_in_its_turn() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("the third")
        return number

    results = prefetch(make, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)


def test_closing_early_starts_no_further_work() -> None:
    made: list[int] = []
    results = prefetch(made.append, range(100))
    next(results)
    results.close()  # pyright: ignore
    assert len(made) <= 3
