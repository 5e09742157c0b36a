"""Frozen networks of Transformers: damaged files give one line that names the folder; dtypes of weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.types import Prefix
from tiny import decoders as tiny_decoders
from tiny.decoders import ragged_prefix, save_decoder


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


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_the_dtype_of_weights_is_logged(stored: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_decoder(tmp_path)
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, stored)).save_pretrained(folder)
    with caplog.at_level(logging.DEBUG, "mmprefix"):
        decoder = CausalDecoder(folder)
    assert decoder.language_model.dtype == torch.float32
    size = sum(4 * parameter.numel() for parameter in decoder.lm.parameters()) / 1e6
    lines = [line for line in caplog.messages if "weights stored" in line]
    assert lines == [f"{folder}: weights stored as {stored}, used as float32, {size:.1f} MB"]


@pytest.mark.parametrize(
    ("stored", "used"),
    [("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16"), ("float64", "float32")],
)
def test_dtype_auto_is_that_of_the_weights(stored: str, used: str, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path)
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, stored)).save_pretrained(folder)
    assert CausalDecoder(folder, dtype="auto").language_model.dtype == getattr(torch, used)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")  # its dtype stands in config.json
    assert CausalDecoder(folder, dtype="auto").language_model.dtype == getattr(torch, used)


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_on_a_cpu_scores_as_single_precision(
    dtype: Literal["float16", "bfloat16"], tmp_path: Path
) -> None:
    folder = save_decoder(tmp_path, "llama", sharp=2.0)
    scores: list[list[float]] = []
    for decoder in (CausalDecoder(folder), CausalDecoder(folder, dtype=dtype)):
        prefix = ragged_prefix(decoder, [4, 2])
        prefix = Prefix(prefix.embeds * 0.1, prefix.mask)
        rows = decoder.score(decoder.prefill(prefix), ["", "the"], [["a dog"], ["rain"]])
        scores.append([score for row in rows for score in row])
    assert scores[1] == pytest.approx(scores[0], rel=0.02)
