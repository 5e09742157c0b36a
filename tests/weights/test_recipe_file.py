"""File mmprefix.yaml of a saved model: what is read, and one line for each way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmprefix.errors import InputError
from mmprefix.weights.recipe_file import FORMAT, read_recipe

DECODER = {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": "gpt2"}}
SAVED: dict[str, Any] = {
    "format": FORMAT,
    "recipe": {"branches": {}, "decoder": DECODER},
    "parts": {"decoder": {"source": "gpt2", "revision": None, "sha256": "0" * 64}},
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "mmprefix.yaml").write_text(yaml.safe_dump(SAVED | changes), encoding="utf-8")
    return folder


def test_a_recipe_is_read(tmp_path: Path) -> None:
    saved = read_recipe(write(tmp_path))
    assert saved["recipe"]["decoder"] == DECODER
    assert saved["parts"] == SAVED["parts"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT + 1}, f"is not of format {FORMAT}"),
        ({"recipe": None}, "has no recipe"),
        ({"parts": []}, "has no parts"),
        ({"parts": {"decoder": {"source": "gpt2"}}}, "parts.decoder needs source, revision and sha256"),
        ({"recipe": {"branches": {}}}, "its recipe lacks branches, their encoders or the decoder"),
    ],
)
def test_a_changed_file_is_refused_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(write(tmp_path, **changes))
    assert message in str(caught.value)
    assert "mmprefix.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_it_is_no_saved_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no saved model \(it has no mmprefix\.yaml\)"):
        read_recipe(tmp_path)
