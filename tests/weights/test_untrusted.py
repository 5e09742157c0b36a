"""Files of strangers: tensors and vocabularies are read without running code; anything else is refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmprefix.errors import InputError
from mmprefix.weights import untrusted


class RunsCode:
    """Object whose pickle calls a function when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize(
    "content", [STATE, {"state_dict": STATE}, {"model": STATE}], ids=["bare", "Lightning", "PANNs"]
)
def test_the_state_of_a_model_is_read_at_any_usual_key(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    tensors = untrusted.read_tensors(tmp_path / "a.pt")
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    assert torch.equal(untrusted.read_tensors(tmp_path / "a.safetensors")["weight"], STATE["weight"])
    (tmp_path / "a.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match=r"a\.safetensors: cannot be read"):
        untrusted.read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no tensors by name, but a list"),
        ({}, "holds no tensors by name, but a dict"),
        (torch.ones(2), "holds no tensors by name, but a Tensor"),
        ({**STATE, "epoch": 3}, "'epoch' is no tensor, but a int"),
        ({**STATE, 3: torch.ones(1)}, "3 is no tensor, but a Tensor"),
        ({"huge": torch.zeros(1).expand(10**12)}, "tensor 'huge' is not stored in full"),
        ({"sparse": torch.ones(2, 2).to_sparse()}, "tensor 'sparse' is not stored in full"),
    ],
    ids=["list", "empty", "tensor", "number", "number as name", "expanded", "sparse"],
)
def test_other_contents_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError) as error:
        untrusted.read_tensors(tmp_path / "a.pt")
    assert f"{tmp_path / 'a.pt'}: {message}" in str(error.value)


def test_a_file_that_would_run_code_runs_none(tmp_path: Path) -> None:
    torch.save({"weight": RunsCode(tmp_path / "ran")}, tmp_path / "a.pt")
    (tmp_path / "words.pkl").write_bytes(pickle.dumps([RunsCode(tmp_path / "ran")]))
    with pytest.raises(InputError, match=r"is refused: it would have .* run when it is read"):
        untrusted.read_tensors(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"the vocabulary cannot be read .*is refused"):
        untrusted.read_vocabulary(tmp_path / "words.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, "holds no tensor 'weight', which the model has"),
        ({"more": torch.ones(1)}, "holds a tensor 'more', which the model does not have"),
        ({"weight": torch.ones(3, 2)}, r"tensor 'weight' of the model has the shape (3, 2); (2, 3) was expected"),
        ({"bias": torch.tensor([1.0, torch.nan])}, "tensor 'bias' of the model holds something other than finite"),
        ({"bias": torch.ones(2, dtype=torch.long)}, "tensor 'bias' of the model holds something other than finite"),
    ],
)
def test_the_first_difference_is_named(change: dict[str, Any], message: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    untrusted.compare(shapes, STATE, "a.pt", "the model")
    tensors = {name: tensor for name, tensor in {**STATE, **change}.items() if tensor is not None}
    with pytest.raises(InputError) as error:
        untrusted.compare(shapes, tensors, "a.pt", "the model")
    assert f"a.pt: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\ndog\n", ["a", "dog"]),
        ("\ufeffa\r\nhünd".encode(), ["a", "hünd"]),
        (json.dumps(["a", "dog"]).encode(), ["a", "dog"]),
        (pickle.dumps(["a", "dog"]), ["a", "dog"]),
    ],
    ids=["lines", "lines of Windows", "JSON", "pickle"],
)
def test_vocabularies_of_every_form(content: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "words").write_bytes(content)
    assert untrusted.read_vocabulary(tmp_path / "words") == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\ndog\na\n", "the word 'a' is there twice"),
        (b"a\n\ndog\n", "is no vocabulary"),
        (b"[1, 2]", "is no vocabulary"),
        (pickle.dumps({"a": 0}), "is no vocabulary"),
        (b"[" * 100000, "the vocabulary cannot be read"),
        (b"\xff\xfe", "the vocabulary cannot be read"),
        (None, "the vocabulary cannot be read"),
    ],
    ids=["twice", "empty word", "numbers", "dict", "too deep", "not UTF-8", "missing"],
)
def test_other_vocabularies_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "words").write_bytes(content)
    with pytest.raises(InputError) as error:
        untrusted.read_vocabulary(tmp_path / "words")
    assert f"{tmp_path / 'words'}: {message}" in str(error.value)
