"""Quantised decoders: trained behind as behind the rounded weights, saved by name, and what cannot be quantised."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mmprefix
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.mlp import MLP
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import Prefix
from mmprefix.weights import quantized
from tiny import models as tiny_models
from tiny.decoders import ragged_prefix, save_decoder

pytestmark = pytest.mark.numeric
TARGETS = [["a dog barks", "the cat."], ["rain falls loudly over a hill"], ["a", "some rain", "the old roof rings"]]
PROMPTS = ["", "the", "a green"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("llama"), "llama", sharp=3.0)


@pytest.fixture
def int8(folder: str) -> CausalDecoder:
    pytest.importorskip("torchao", reason="needs mmprefix[quantized]")
    return CausalDecoder(folder, quantize="int8")


def rounded(folder: str, int8: CausalDecoder) -> CausalDecoder:
    """Plain decoder whose matrices are those that ``int8`` stands for."""
    plain = CausalDecoder(folder)
    modules = dict(int8.lm.named_modules())
    with torch.no_grad():
        for name, module in plain.lm.named_modules():
            if quantized.is_quantized(modules[name]):
                module.weight.copy_(modules[name].weight.dequantize())
    return plain


def loss_and_gradient(decoder: CausalDecoder) -> tuple[torch.Tensor, torch.Tensor]:
    prefix = ragged_prefix(decoder, [5, 3, 4])
    embeds = prefix.embeds.clone().requires_grad_()
    loss = decoder.loss(decoder.prefill(Prefix(embeds, prefix.mask)), PROMPTS, TARGETS)
    loss.backward()
    assert embeds.grad is not None
    return loss.detach(), embeds.grad


def test_losses_gradients_and_texts_are_those_of_the_rounded_weights(folder: str, int8: CausalDecoder) -> None:
    plain = rounded(folder, int8)
    (loss, gradient), (expected, other) = loss_and_gradient(int8), loss_and_gradient(plain)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert (gradient - other).abs().max() <= 1e-3 * other.abs().max()
    assert abs(float(loss - loss_and_gradient(CausalDecoder(folder))[0])) > 1e-4  # rounding is seen
    prefix, options = ragged_prefix(int8, [6, 2, 4]), GenerateOptions(max_new_tokens=8, num_beams=3)
    together, texts = (each.generate(each.prefill(prefix), PROMPTS, options) for each in (int8, plain))
    assert [row[0].text for row in together] == [row[0].text for row in texts]
    for b in range(3):
        alone = Prefix(prefix.embeds[b : b + 1][:, prefix.mask[b]], prefix.mask[b : b + 1][:, prefix.mask[b]])
        assert int8.generate(int8.prefill(alone), PROMPTS[b : b + 1], options)[0][0].text == together[b][0].text
    assert not any(parameter.requires_grad for parameter in int8.parameters())


def test_the_log_says_that_weights_are_quantised_and_how_large_they_are(
    folder: str, int8: CausalDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "mmprefix"):
        CausalDecoder(folder, quantize="int8", dtype="bfloat16")
    weights = [module.weight for module in int8.lm.modules() if quantized.is_quantized(module)]
    saved = sum(3 * weight.numel() - 4 * len(weight) for weight in weights)  # a byte a number, a scale a row
    size = sum(tensor.nbytes for tensor in CausalDecoder(folder).lm.parameters())
    assert quantized.stored_bytes(int8.lm) == pytest.approx(size - saved, rel=0.01)
    (line,) = [line for line in caplog.messages if "weights stored as" in line]
    assert "weights stored as float32, used as int8 and bfloat16, " in line


def test_a_saved_model_names_its_quantisation(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="needs mmprefix[quantized]")
    parts = tiny_models.frozen_parts(tmp_path / "parts")
    encoder = Whisper(str(parts["audio"]))
    branch = Branch(encoder, partial(MLP, length=3))
    predictor = mmprefix.Predictor(PrefixLM({"audio": branch}, CausalDecoder(folder, quantize="int8")))
    (tmp_path / "a.wav").write_bytes(tiny_models.sound_bytes(tiny_models.tone(0.5, 300.0)))
    predictor.save(tmp_path / "saved")
    saved = yaml.safe_load((tmp_path / "saved" / "mmprefix.yaml").read_text())
    assert saved["recipe"]["decoder"]["init_args"]["quantize"] == "int8"
    loaded = mmprefix.load(tmp_path / "saved", device="cpu")
    assert any(quantized.is_quantized(module) for module in loaded.model.decoder.modules())
    assert loaded(tmp_path / "a.wav") == predictor(tmp_path / "a.wav")


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="needs mmprefix[quantized]")
    with pytest.raises(InputError, match="quantize int8 finds no linear layer in GPT2LMHeadModel"):
        CausalDecoder(save_decoder(tmp_path), quantize="int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a CUDA device")
def test_four_bits_need_a_gpu(folder: str) -> None:
    with pytest.raises(InputError, match=r"quantize nf4 needs a CUDA GPU, .*; take int8$"):
        CausalDecoder(folder, quantize="nf4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": False}, "frozen: false trains what quantize int8 rounds; leave out one of the two"),
        ({"lora_rank": 4}, "lora_rank trains what quantize int8 rounds"),
        ({"quantize": "int2"}, "quantize: 'int2' is none of int8, nf4"),
    ],
)
def test_combinations_that_cannot_work(options: dict[str, Any], message: str, folder: str) -> None:
    with pytest.raises(InputError, match=message):
        CausalDecoder(folder, **{"quantize": "int8", **options})


def test_without_its_package_the_message_says_what_to_install(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None if name == "torchao" else True)
    with pytest.raises(
        InputError, match=r"quantize int8 needs torchao; install mmprefix\[quantized\], or leave it out$"
    ):
        CausalDecoder(folder, quantize="int8")


def test_weights_that_are_quantised_already_are_refused(folder: str, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match="is quantised already; leave quantize out"):
        CausalDecoder(str(own), quantize="int8")


def test_a_gguf_file_is_not_quantised_again(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tiny.gguf import write_gguf

    file = write_gguf(folder, tmp_path / "x.gguf")
    with pytest.raises(InputError, match=r"quantize int8: a \.gguf file is unpacked to .*; give a folder instead"):
        CausalDecoder(str(file), quantize="int8")
