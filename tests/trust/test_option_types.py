"""Values of another type than an option's annotation are refused by name, before anything is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.trust.option_types import matches, require_types


def takes(
    size: int, rate: float = 1.0, *, name: str | None = None, on: bool = True, way: Literal["cut", "keep"] = "cut",
    widths: tuple[int, ...] = (), words: str | list[str] = "", facts: dict[str, float] | None = None,
    part: Callable[[int], int] | None = None, free=None,
) -> None:  # fmt: skip
    """Options of every kind."""


GOOD: dict[str, Any] = {
    "size": 3, "rate": 2, "name": None, "on": False, "way": "keep", "widths": [1, 2], "words": ["a"],
    "facts": {"loss": 0.5}, "part": {"class_path": "x.Y"}, "free": object(),
}  # fmt: skip


def test_values_of_the_right_type_pass() -> None:
    require_types(takes, GOOD, "recipe")
    require_types(takes, {"name": "a", "words": "a", "facts": None, "widths": (1,), "rate": 0.5}, "recipe")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", "x"), ("size", 1.5), ("size", True), ("size", [1]), ("size", None), ("rate", "x"), ("rate", False),
        ("name", 5), ("on", 1), ("on", "yes"), ("way", "fold"), ("way", ["cut"]), ("widths", 3), ("widths", [1, "x"]),
        ("words", [1]), ("words", {"a": 1}), ("facts", [1]), ("facts", {"loss": "x"}),
    ],
)  # fmt: skip
def test_values_of_another_type_are_named(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^mmprefix.yaml: {option}: ") as error:
        require_types(takes, GOOD | {option: value}, "mmprefix.yaml")
    assert "\n" not in str(error.value)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(InputError) as error:
        require_types(takes, {"size": "x" * 10_000}, "recipe")
    assert len(str(error.value)) < 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": "x"}, "max_new_tokens"), ({"num_beams": [1]}, "num_beams"),
        ({"num_beams": 10**9}, "raise it by MMPREFIX_MAX_BEAMS"), ({"length_penalty": "x"}, "length_penalty"),
        ({"max_new_tokens": 10**9}, "raise it by MMPREFIX_MAX_TOKENS"),
        ({"sample": True, "num_return": 10**6}, "raise it by MMPREFIX_MAX_BEAMS"),
        ({"length_penalty": float("nan")}, "finite"), ({"sample": True, "seed": 1 << 70}, "63 bits"),
    ],
)  # fmt: skip
def test_decoding_of_a_model_directory_is_bounded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GenerateOptions(**options)


def test_limits_of_decoding_are_raised_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPREFIX_MAX_BEAMS", "5000")
    assert GenerateOptions(num_beams=5000).num_beams == 5000


def test_unions_of_literals_and_numbers_compare() -> None:
    assert matches(3, int | Literal["all"])
    assert matches("all", int | Literal["all"])
    assert not matches("some", int | Literal["all"])
