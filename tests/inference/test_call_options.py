"""Decoding of a call: every option reaches the search, and what belongs to another way of searching gives way."""

from __future__ import annotations

from typing import Any

import pytest

from mmprefix import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.call_options import CallOptions, GenerateOverrides, decoding, refuse_unknown

GREEDY = GenerateOptions()
BEAMS = GenerateOptions(num_beams=4, length_penalty=0.6, ranking="default")
CLIPCAP = GenerateOptions(num_beams=5, ranking="clipcap")
SAMPLED = GenerateOptions(sample=True, temperature=0.7, top_p=0.9, seed=5)


@pytest.mark.parametrize(
    ("own", "overrides", "expected"),
    [
        (GREEDY, {}, {}),
        (GREEDY, {"temperature": 0.5}, {"sample": True, "temperature": 0.5}),
        (GREEDY, {"top_p": 0.8}, {"sample": True, "top_p": 0.8}),
        (GREEDY, {"seed": 3}, {"sample": True, "seed": 3}),
        (GREEDY, {"num_beams": 3, "temperature": 2.0}, {"num_beams": 3, "temperature": 2.0}),
        (GREEDY, {"num_beams": 1, "temperature": 2.0}, {"sample": True, "temperature": 2.0}),
        (GREEDY, {"length_penalty": 0.3, "min_new_tokens": 2}, {"length_penalty": 0.3, "min_new_tokens": 2}),
        (GREEDY, {"no_repeat_ngram_size": 2, "max_new_tokens": 9}, {"no_repeat_ngram_size": 2, "max_new_tokens": 9}),
        (BEAMS, {"temperature": 0.5}, {"sample": True, "num_beams": 1, "temperature": 0.5}),
        (BEAMS, {"length_penalty": 1.0}, {"length_penalty": 1.0}),
        (BEAMS, {"num_beams": 1}, {"num_beams": 1}),
        (CLIPCAP, {"seed": 1}, {"sample": True, "num_beams": 1, "ranking": "default", "seed": 1}),
        (CLIPCAP, {"num_beams": 2}, {"num_beams": 2}),
        (SAMPLED, {"temperature": 1.3}, {"temperature": 1.3}),
        (SAMPLED, {"top_p": 1.0}, {"top_p": 1.0}),
        (SAMPLED, {"num_beams": 2}, {"sample": False, "num_beams": 2, "temperature": 1.0, "top_p": 1.0, "seed": None}),
        (SAMPLED, {"num_beams": None, "seed": None, "temperature": None}, {}),
    ],
)
def test_the_options_of_a_call(own: GenerateOptions, overrides: GenerateOverrides, expected: dict[str, Any]) -> None:
    options = decoding(own, 1, overrides)
    changed = {name: value for name, value in vars(options).items() if value != getattr(own, name)}
    assert changed == {name: value for name, value in expected.items() if value != getattr(own, name)}
    assert all(getattr(options, name) == value for name, value in expected.items())


def test_several_texts_need_as_many_beams() -> None:
    assert decoding(GREEDY, 3, {}).num_beams == 3
    assert decoding(GREEDY, 3, {"temperature": 0.5}).num_beams == 1  # drawn instead
    with pytest.raises(InputError, match="num_return=3: num_beams=2 gives fewer texts"):
        decoding(GREEDY, 3, {"num_beams": 2})
    with pytest.raises(InputError, match="num_beams=2: sample=True draws texts without beams"):
        decoding(GREEDY, 1, {"num_beams": 2, "top_p": 0.5})


def test_unknown_names_are_refused() -> None:
    wrong: Any = {"num_beam": 3}
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_beam'; there are prompt, context"):
        decoding(GREEDY, 1, wrong)
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_beams'"):
        refuse_unknown({"num_beams": 3}, CallOptions)  # type: ignore[typeddict-item]
