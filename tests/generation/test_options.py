"""Generation options: contradictions are refused by name, with a remedy."""

from __future__ import annotations

import pytest

from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions


@pytest.mark.parametrize(("options", "message"), [
    ({"num_beams": 0}, "num_beams=0"),
    ({"num_return": 2}, "num_return=2.*raise num_beams"),
    ({"top_p": 0.5}, "top_p=0.5.*sample=True"),
    ({"temperature": 0.5}, "greedy"),
    ({"temperature": 0.0, "sample": True}, "above 0"),
    ({"seed": 1}, "seed=1: is for sampling only"),
    ({"sample": True, "num_beams": 2}, "num_beams=2: sample=True draws texts without beams"),
    ({"ranking": "clipcap"}, "for beam search only"),
])  # fmt: skip
def test_contradictions_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GenerateOptions(**options)  # type: ignore[arg-type]
