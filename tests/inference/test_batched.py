"""Work one piece ahead: in order, really meanwhile, and with its errors where they belong."""

from __future__ import annotations

import threading

import pytest

from mmprefix.inference.batched import prefetch


def test_results_come_in_order() -> None:
    assert list(prefetch(lambda n: n * n, range(7))) == [n * n for n in range(7)]
    assert list(prefetch(lambda n: n, [])) == []


def test_the_next_is_made_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(3)]

    def make(number: int) -> int:
        begun[number].set()
        return number

    results = prefetch(make, range(3))
    assert next(results) == 0
    assert begun[1].wait(10)  # nobody has asked for it yet
    assert not begun[2].is_set()
    assert list(results) == [1, 2]


def test_an_error_comes_in_its_place() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("the third")
        return number

    results = prefetch(make, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)


def test_who_stops_early_waits_for_nothing_more() -> None:
    made: list[int] = []
    results = prefetch(made.append, range(100))
    next(results)
    results.close()  # pyright: ignore
    assert len(made) <= 3
