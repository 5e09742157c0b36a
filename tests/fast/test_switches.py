"""MMPREFIX_FAST: the fast paths that an environment variable leaves in use."""

from __future__ import annotations

import pytest

from mmprefix.errors import InputError
from mmprefix.fast.switches import NAMES, parse


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, set(NAMES)),
        ("", set()),
        (" , ", set()),
        ("gelu, last_layer", {"gelu", "last_layer"}),
        (",".join(NAMES), set(NAMES)),
    ],
)
def test_the_variable_names_the_fast_paths_in_use(value: str | None, names: set[str]) -> None:
    assert parse(value) == names


def test_an_unknown_fast_path_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"MMPREFIX_FAST: 'gleu' is none of gelu, .*gelu"):
        parse("chunked_nll,gleu")
