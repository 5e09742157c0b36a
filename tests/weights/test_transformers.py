"""Frozen networks of Transformers: damaged files give one line that names the folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from tiny import decoders as tiny_decoders


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["model"]["vocab"].pop("".join(data["model"]["merges"][0])),
        lambda data: data.update(model=5),
        lambda data: data.pop("model"),
        lambda data: data["model"].update(type="Unheard"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_one_line(edit: Callable[[Any], Any], tmp_path: Path) -> None:
    tiny_decoders.save_decoder(tmp_path / "decoder")
    file = tmp_path / "decoder" / "tokenizer.json"
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="holds no tokenizer that can be loaded") as error:
        CausalDecoder(str(tmp_path / "decoder"))
    assert "\n" not in str(error.value)
