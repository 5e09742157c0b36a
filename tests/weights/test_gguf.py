"""Decoders from .gguf files: the same scores as from the same weights in safetensors, and the tokenizer's rule."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import mmprefix
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.decoders.word_level import WordDecoder
from mmprefix.encoders.vit import ViT
from mmprefix.errors import InputError
from mmprefix.weights import dry_run
from tiny import models as tiny_models
from tiny.decoders import CHAT_TEMPLATE, END, make_tokenizer, ragged_prefix, save_decoder
from tiny.gguf import write_gguf

TARGETS = [["a dog barks", "the cat."], ["rain falls loudly over a hill"], ["a", "some rain", "the old roof rings"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def file(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(folder, tmp_path_factory.mktemp("alone") / "tongue.gguf")


def digit_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer with SmolLM2's rule, whose vocabulary has a subword for the digits 12."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["the 12 cats 12 the 12"] * 3, trainer)
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, bos_token=END)


@pytest.mark.numeric
def test_scores_and_tokens_are_those_of_the_same_weights_in_safetensors(folder: str, file: Path) -> None:
    plain, own = CausalDecoder(folder), CausalDecoder(str(file))
    prefix = ragged_prefix(plain, [5, 3, 4])
    expected, scores = (each.score(each.prefill(prefix), ["", "the", "a"], TARGETS) for each in (plain, own))
    for row, values in zip(scores, expected, strict=True):
        assert row == pytest.approx(values, abs=1e-3, rel=1e-5)
    assert own.codec.begin == plain.codec.begin
    assert own.stop_ids().tolist() == plain.stop_ids().tolist()
    for texts in TARGETS:
        assert [own.codec.target_ids("", text) for text in texts] == [plain.codec.target_ids("", t) for t in texts]
    assert own.codec.subword_ids(f"{END} a dog") == plain.codec.subword_ids(f"{END} a dog")


def test_a_file_its_folder_and_its_name_are_one_part(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(file, own)
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path))
    names = [str(file), str(own), "models:own", "models:own/tongue.gguf"]
    assert len({CausalDecoder(name).identity.sha256 for name in names}) == 1
    (tmp_path / "link.gguf").symlink_to(shutil.copy(file, tmp_path / "blob"))
    monkeypatch.chdir(tmp_path)
    assert CausalDecoder("link.gguf").identity.sha256 == CausalDecoder(str(file)).identity.sha256


def test_safetensors_in_a_folder_come_first(folder: str, file: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(folder, tmp_path / "both"))
    shutil.copy(file, both)
    assert CausalDecoder(str(both)).identity.sha256 == CausalDecoder(folder).identity.sha256
    assert CausalDecoder(str(both / file.name)).identity.sha256 == CausalDecoder(str(file)).identity.sha256


def test_several_files_in_a_folder_are_listed(file: Path, tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(InputError, match=r"holds 2 \.gguf files; give one of them: a\.gguf, b\.gguf$"):
        CausalDecoder(str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere.gguf", "models:nowhere.gguf", "models:own/nowhere.gguf"])
def test_a_file_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path))
    with pytest.raises(InputError, match=f"{name}.*no such file"):
        CausalDecoder(name)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_without_a_package_the_message_says_what_to_install(
    package: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(InputError, match=rf"a \.gguf file needs {package}; install mmprefix\[gguf\]$"):
        CausalDecoder(str(file))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no file of this kind" * 9,
        lambda content: content[:60],
        lambda content: content[:9000],
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"llama", b"oyama"),
    ],
)
def test_a_damaged_file_is_one_line(damage: Callable[[bytes], bytes], file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"broken\.gguf") as error:
        CausalDecoder(str(broken))
    assert "\n" not in str(error.value)


def test_every_digit_is_a_subword_of_its_own_where_the_file_says_so(tmp_path: Path) -> None:
    words = digit_tokenizer()
    source = save_decoder(tmp_path / "plain", "llama", words=words)
    text = "the 12 cats, 1212 of them"
    assert any(token.endswith("12") for token in words.get_vocab())
    (tmp_path / "own").mkdir()
    own = CausalDecoder(str(write_gguf(source, tmp_path / "own" / "smol.gguf", "smollm")))
    assert own.codec.subword_ids(text) == words(text)["input_ids"]
    gpt2 = CausalDecoder(str(write_gguf(source, tmp_path / "own" / "gpt2.gguf", "gpt-2")))
    assert gpt2.codec.subword_ids(text) != words(text)["input_ids"]  # the rule is what makes the difference


@pytest.mark.parametrize("rule", ["unheard-of", None])
def test_an_unknown_rule_needs_the_tokenizer_beside_the_file(rule: str | None, folder: str, tmp_path: Path) -> None:
    file = write_gguf(folder, tmp_path / "strange.gguf", rule, tokenizer__chat_template=CHAT_TEMPLATE)
    with pytest.raises(InputError, match=r"splits texts by .*; put the model's tokenizer.json beside the file$"):
        CausalDecoder(str(file))
    shutil.copy(Path(folder) / "tokenizer.json", tmp_path)
    decoder, plain = CausalDecoder(str(file)), CausalDecoder(folder)
    assert decoder.tokenizer.chat_template == CHAT_TEMPLATE  # what tokenizer.json does not say is the file's
    assert decoder.codec.eos == plain.codec.eos
    assert decoder.codec.target_ids("", "a dog") == plain.codec.target_ids("", "a dog")


def test_a_tokenizer_beside_the_file_comes_first(folder: str, tmp_path: Path) -> None:
    file = write_gguf(folder, tmp_path / "x.gguf")
    words = make_tokenizer()
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.save_pretrained(tmp_path)
    decoder = CausalDecoder(str(tmp_path))
    assert decoder.codec.subword_ids("dog") == words("dog")["input_ids"] != make_tokenizer()("dog")["input_ids"]
    assert file.is_file()


def test_scaled_positions_are_warned_of(folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_gguf(folder, tmp_path / "long.gguf", llama__rope__scaling__type="linear")
    CausalDecoder(str(file))
    assert sum("scales its positions" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("Q8_0", "float32")])
def test_the_dtype_of_weights_is_logged_and_auto_keeps_it(
    kind: str, dtype: str, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_gguf(folder, tmp_path / "x.gguf", kind=kind)
    with caplog.at_level(logging.DEBUG, "mmprefix"):
        decoder = CausalDecoder(str(file), dtype="auto")
    assert decoder.language_model.dtype == getattr(torch, dtype)
    stored = {"F32": "float32", "F16": "float16, float32", "Q8_0": "Q8_0, float32"}[kind]
    assert any(f"weights stored as {stored}, used as {dtype}, " in line for line in caplog.messages)


def test_unpacking_shows_no_progress_bar(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    CausalDecoder(str(file))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("beside", [False, True])
def test_a_saved_model_names_its_file_portably_and_packs_it(
    beside: bool, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMPREFIX_CACHE", str(tmp_path / "cache"))
    parts = tiny_models.frozen_parts(tmp_path / "home")
    parts["decoder"] = write_gguf(folder, tmp_path / "home" / "tongue.gguf", "unheard-of" if beside else "gpt-2")
    if beside:
        shutil.copy(Path(folder) / "tokenizer.json", tmp_path / "home")
    (tmp_path / "a.wav").write_bytes(tiny_models.sound_bytes(tiny_models.tone(0.5, 300.0)))
    model = mmprefix.Predictor(tiny_models.build_model(parts, "audio"))
    expected = model(tmp_path / "a.wav")
    for name, pack in (("m", False), ("packed", True)):
        model.save(tmp_path / name, pack=pack)
        recipe = (tmp_path / name / "mmprefix.yaml").read_text()
        assert str(tmp_path) not in recipe
        assert "./parts/tongue.gguf" in recipe
    assert mmprefix.load(tmp_path / "m", device="cpu")(tmp_path / "a.wav") == expected  # by memory
    moved = shutil.move(tmp_path / "home", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "cache")
    assert mmprefix.load(tmp_path / "packed", device="cpu")(tmp_path / "a.wav") == expected
    places: dict[str, Any] = {"audio": f"{moved}/audio", "decoder": f"{moved}/tongue.gguf"}
    assert mmprefix.load(tmp_path / "m", device="cpu", parts=places)(tmp_path / "a.wav") == expected


def test_sizes_without_weights(file: Path) -> None:
    with dry_run.without_weights():
        decoder = CausalDecoder(str(file))
    assert (decoder.layers, decoder.width, decoder.heads, decoder.max_positions) == (2, 32, 2, 128)
    assert next(decoder.lm.parameters()).is_meta


def test_classes_that_read_no_such_file_name_the_one_that_does(file: Path) -> None:
    for make in (CrossDecoder, ViT):
        with pytest.raises(InputError, match=r"mmprefix\.decoders\.CausalDecoder") as error:
            make(str(file.parent))
        assert "\n" not in str(error.value)


@pytest.mark.numeric
def test_a_decoder_of_words_reads_the_same_file(folder: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a\ndog\nbarks\n<eos>\n")
    scores: list[list[list[float]]] = []
    for source in (folder, str(file)):
        torch.manual_seed(0)
        decoder = WordDecoder(source, str(tmp_path / "words.txt"))
        scores.append(decoder.score(decoder.prefill(ragged_prefix(decoder, [3])), [""], [["a dog barks"]]))
    assert scores[0][0] == pytest.approx(scores[1][0], abs=1e-3)


@pytest.mark.numeric
def test_a_model_is_trained_and_saved_as_any_other(file: Path) -> None:
    decoder = CausalDecoder(str(file), frozen=False)
    decoder.loss(decoder.prefill(ragged_prefix(decoder, [3])), ["the"], [["a dog"]]).backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert "quantization_config" not in decoder.lm.config.to_dict()
