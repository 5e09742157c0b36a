"""LoRA in a frozen decoder: trained and saved parameters, the formula, refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.errors import InputError
from mmprefix.inference.loading import load
from mmprefix.types import Prefix
from tiny.captioning_system import checkpoint_tensors, quietly, run, training_record
from tiny.speech_system import SpeechSystem, recipe_part

pytestmark = quietly


@pytest.fixture(scope="module")
def fitted(spoken: SpeechSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training of two epochs, of a mapper and LoRA together."""
    root = tmp_path_factory.mktemp("fit")
    assert run("fit", spoken.recipe(config(spoken), root), save_to=root / "model", trainer__max_epochs=2) == 0
    return root


def config(spoken: SpeechSystem, **decoder: Any) -> dict[str, Any]:
    """Sounds through Whisper's encoder and an MLP to GPT-2 with LoRA."""
    audio = {
        "encoder": recipe_part("encoders.whisper.Whisper", model=spoken.path("whisper")),
        "mapper": recipe_part("mappers.mlp.MLP", length=2, hidden=8),
    }
    arguments = {"model": spoken.path("decoder"), "lora_rank": 4, "lora_alpha": 16.0, **decoder}
    return spoken.config(branches={"audio": audio}, decoder=recipe_part("decoder.CausalDecoder", **arguments))


def test_only_lora_and_mapper_are_trained(fitted: Path) -> None:
    record = training_record(fitted)
    moved = {name for name, tensor in record.after.items() if not torch.equal(tensor, record.before[name])}
    lora = {name for name in record.after if ".lora_" in name}
    layers = {"h.0.attn.c_attn.lora_A", "h.0.attn.c_attn.lora_B", "h.1.attn.c_attn.lora_A", "h.1.attn.c_attn.lora_B"}
    assert lora == {f"model.decoder.lm.transformer.{layer}.default.weight" for layer in layers}
    mapper = {name for name in record.after if name.startswith("model.mappers.")}
    assert moved == lora | mapper == set(record.gradients)
    assert len(record.after) > len(moved) + 40  # the others keep their bits


def test_the_trained_tensors_are_saved(fitted: Path) -> None:
    trained = {
        name: tensor for name, tensor in training_record(fitted).after.items() if ".lora_" in name or "mappers" in name
    }
    saved = load_file(fitted / "model" / "model.safetensors")
    for kept in (checkpoint_tensors(fitted / "checkpoints" / "last.ckpt"), {f"model.{n}": t for n, t in saved.items()}):
        assert kept.keys() == trained.keys()
        assert all(torch.equal(kept[name], trained[name]) for name in kept)


def test_a_saved_model_scores_as_the_trained_one(spoken: SpeechSystem, fitted: Path, tmp_path: Path) -> None:
    files, texts = [spoken.path(f"{n}.wav") for n in range(3)], ["a dog barks", "rain falls", "the old roof"]
    model = load(fitted / "model", device="cpu")
    assert model.model.decoder.init_args["lora_rank"] == 4
    scores = model.score(files, texts)
    model.save(tmp_path / "again")
    assert load(tmp_path / "again", device="cpu").score(files, texts) == pytest.approx(scores, rel=1e-5)
    with torch.no_grad():
        for name, parameter in model.model.decoder.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    without = model.score(files, texts)
    assert all(abs(a - b) > 1e-3 for a, b in zip(scores, without, strict=True))


def test_lora_is_zero_at_first_and_follows_its_formula(spoken: SpeechSystem) -> None:
    """Output c_attn(x) + alpha / rank * B A x, with B = 0 at first."""
    torch.manual_seed(3)
    plain = CausalDecoder(spoken.path("decoder"))
    with_lora = CausalDecoder(spoken.path("decoder"), lora_rank=4, lora_alpha=12.0)
    prefix = Prefix(torch.randn(2, 3, 32), torch.ones(2, 3, dtype=torch.bool))
    targets = [["a dog"], ["rain falls"]]
    scores, expected = (d.score(d.prefill(prefix), ["", ""], targets) for d in (with_lora, plain))
    assert_close(torch.tensor(scores), torch.tensor(expected))
    with torch.no_grad():
        for layer, base in zip(with_lora.lm.transformer.h, plain.lm.transformer.h, strict=True):
            b, a = (layer.attn.c_attn.__getattr__(name)["default"].weight for name in ("lora_B", "lora_A"))
            b.normal_(std=0.2)
            base.attn.c_attn.weight += (12.0 / 4 * b @ a).T
    scores, expected = (d.score(d.prefill(prefix), ["", ""], targets) for d in (with_lora, plain))
    assert_close(torch.tensor(scores), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_dora_is_the_model_at_first_and_follows_its_formula(spoken: SpeechSystem) -> None:
    """Columns of W + alpha / rank * B A, brought to the lengths that are trained: those of W at first."""
    torch.manual_seed(3)
    plain = CausalDecoder(spoken.path("decoder"))
    with_dora = CausalDecoder(spoken.path("decoder"), lora_rank=4, lora_alpha=12.0, use_dora=True)
    prefix = Prefix(torch.randn(2, 3, 32), torch.ones(2, 3, dtype=torch.bool))
    targets = [["a dog"], ["rain falls"]]
    scores, expected = (d.score(d.prefill(prefix), ["", ""], targets) for d in (with_dora, plain))
    assert_close(torch.tensor(scores), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for layer, base in zip(with_dora.lm.transformer.h, plain.lm.transformer.h, strict=True):
            b, a, lengths = (
                layer.attn.c_attn.__getattr__(name)["default"].weight
                for name in ("lora_B", "lora_A", "lora_magnitude_vector")
            )
            b.normal_(std=0.2)
            lengths.mul_(torch.rand_like(lengths) + 0.5)
            turned = base.attn.c_attn.weight + (12.0 / 4 * b @ a).T  # Conv1D keeps inputs x outputs
            base.attn.c_attn.weight.copy_(turned / turned.norm(dim=0) * lengths.flatten())
    scores, expected = (d.score(d.prefill(prefix), ["", ""], targets) for d in (with_dora, plain))
    assert_close(torch.tensor(scores), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_dora_is_trained_and_saved(spoken: SpeechSystem, tmp_path: Path) -> None:
    recipe = spoken.recipe(config(spoken, use_dora=True), tmp_path)
    assert run("fit", recipe, save_to=tmp_path / "model", trainer__max_epochs=1) == 0
    record = training_record(tmp_path)
    lengths = {name for name in record.after if ".lora_magnitude_vector." in name}
    assert len(lengths) == 2
    assert all(not torch.equal(record.before[name], record.after[name]) for name in lengths)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(saved[name.removeprefix("model.")], record.after[name]) for name in lengths)
    model = load(tmp_path / "model", device="cpu")
    own = dict(model.model.named_parameters())
    assert all(torch.equal(own[name.removeprefix("model.")], record.after[name]) for name in lengths)


def test_lora_is_in_float32_whatever_the_dtype_of_the_model(spoken: SpeechSystem) -> None:
    decoder = CausalDecoder(spoken.path("decoder"), dtype="bfloat16", lora_rank=2)
    kinds = {name: parameter.dtype for name, parameter in decoder.named_parameters()}
    assert {kinds[name] for name in decoder.trained} == {torch.float32}
    assert {kind for name, kind in kinds.items() if name not in decoder.trained} == {torch.bfloat16}
    prefix = Prefix(torch.randn(1, 3, 32), torch.ones(1, 3, dtype=torch.bool))
    decoder.loss(decoder.prefill(prefix), [""], [["a dog"]]).backward()
    assert all(p.grad is not None for p in decoder.parameters() if p.requires_grad)


def test_a_model_of_float16_is_not_trained_as_a_whole(spoken: SpeechSystem) -> None:
    for build in (
        lambda: CausalDecoder(spoken.path("decoder"), dtype="float16", frozen=False),
        lambda: CrossDecoder(spoken.path("whisper"), dtype="float16", frozen=False),
    ):
        with pytest.raises(InputError, match=r"frozen: false .* no numbers in float16; take dtype float32"):
            build()
    assert not CausalDecoder(spoken.path("decoder"), dtype="bfloat16", frozen=False).frozen


def test_whisper_has_lora_in_self_attention_and_cross_attention(spoken: SpeechSystem) -> None:
    decoder = CrossDecoder(spoken.path("whisper"), lora_rank=2, lora_targets=["q_proj", "v_proj"])
    assert len(decoder.trained) == 2 * 2 * 2 * 2  # layers, attentions, projections, A and B
    trainable = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert trainable == set(decoder.trained)
    with pytest.raises(InputError, match=r"lora_targets None: PEFT has no default layers for a 'whisper' model"):
        CrossDecoder(spoken.path("whisper"), lora_rank=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 2, "lora_targets": ["k_proj"]}, r"lora_targets \['k_proj'\]: .*not found in the base model"),
        ({"lora_rank": 2, "lora_targets": ["ln_1"]}, r"lora_targets \['ln_1'\]: .*is not supported"),
        ({"lora_rank": 2, "lora_targets": []}, r"lora_targets \[\]: "),
        ({"lora_rank": -1}, "lora_rank -1: give a number from 1 on, or 0"),
        ({"lora_rank": 2, "frozen": False}, "lora_rank 2 needs a frozen model"),
        ({"use_dora": True}, "use_dora needs LoRA; give a lora_rank"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str, spoken: SpeechSystem) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CausalDecoder(spoken.path("decoder"), **options)
    assert "\n" not in str(caught.value)


def test_without_peft_the_message_says_what_to_install(spoken: SpeechSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    CausalDecoder(spoken.path("decoder"))
    with pytest.raises(InputError, match=r"lora_rank: needs PEFT; install mmprefix\[peft\]"):
        CausalDecoder(spoken.path("decoder"), lora_rank=2)
