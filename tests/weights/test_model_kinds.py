"""Wrong kinds of models are refused by name before their weights are read, with the class that reads them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from mmprefix.decoders import CausalDecoder, CrossDecoder, WordDecoder
from mmprefix.encoders.ast import AST
from mmprefix.encoders.clap import Clap
from mmprefix.encoders.clip import Clip
from mmprefix.encoders.speech import Speech
from mmprefix.encoders.text import Text
from mmprefix.encoders.timm import Timm
from mmprefix.encoders.vit import ViT
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.weights.model_kinds import kind_and_class

CONFIGS: dict[str, Callable[[], Any]] = {
    "whisper": hf.WhisperConfig,
    "bart": hf.BartConfig,
    "t5": hf.T5Config,
    "bert": hf.BertConfig,
    "distilbert": hf.DistilBertConfig,
    "clip": hf.CLIPConfig,
    "siglip": hf.SiglipConfig,
    "dinov2": hf.Dinov2Config,
    "wav2vec2": hf.Wav2Vec2Config,
    "audio-spectrogram-transformer": hf.ASTConfig,
    "clap": hf.ClapConfig,
    "gpt2": hf.GPT2Config,
    "llama": hf.LlamaConfig,
}
DECODERS: dict[str, tuple[Callable[[str], Any], set[str]]] = {
    "CausalDecoder": (CausalDecoder, {"gpt2", "llama"}),
    "WordDecoder": (lambda model: WordDecoder(model, ["a", "<eos>"]), {"gpt2", "llama"}),
    "CrossDecoder": (CrossDecoder, {"whisper", "bart"}),
}
ENCODERS: dict[str, tuple[Callable[[str], Any], set[str]]] = {
    "AST": (AST, {"audio-spectrogram-transformer"}),
    "Clap": (Clap, {"clap"}),
    "Clip": (Clip, set()),
    "Speech": (Speech, {"wav2vec2"}),
    "Text": (Text, {"bert", "distilbert", "clip", "siglip"}),
    "Timm": (Timm, set()),
    "ViT": (ViT, {"clip", "siglip", "dinov2"}),
    "Whisper": (Whisper, {"whisper"}),
}
PARTS = {**DECODERS, **ENCODERS}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_wrong_kind_is_refused_by_name_before_weights_are_read(kind: str, part: str, tmp_path: Path) -> None:
    build, readable = PARTS[part]
    CONFIGS[kind]().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(InputError) as error:
        build(str(tmp_path))
    message = str(error.value)
    if kind in readable:
        assert "the model in" in message  # its weights were read
        return
    _, cls = kind_and_class(kind)
    assert f"a {kind!r} model" in message
    assert "cannot be read" not in message
    assert "\n" not in message
    assert message.endswith(cls) or kind == "t5"


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_class_that_is_named_reads_this_kind(kind: str) -> None:
    _, cls = kind_and_class(kind)
    names = [word.strip(",") for word in cls.split() if word.startswith("mmprefix.")]
    assert all(kind in PARTS[name.rpartition(".")[2]][1] for name in names)
    for name in names:
        module, _, own = name.rpartition(".")
        assert hasattr(importlib.import_module(module), own)
    assert names or kind == "t5"


@pytest.mark.parametrize(("files", "expected"), [
    ({"config.json": {"architecture": "resnet18", "pretrained_cfg": {}}}, "of timm; use mmprefix.encoders.timm.Timm"),
    ({"open_clip_config.json": {}}, "a model of open_clip; use mmprefix.encoders.clip.Clip"),
    ({"modules.json": {}}, "holds a sentence encoder"),
    ({"mmprefix.yaml": {}}, "holds a model that mmprefix saved, which is no frozen part; mmprefix caption "),
])  # fmt: skip
@pytest.mark.parametrize("part", [*DECODERS, "Whisper", "Text"])
def test_a_folder_of_another_library_is_named(files: dict[str, Any], expected: str, part: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(InputError, match=expected):
        PARTS[part][0](str(tmp_path))


@pytest.mark.parametrize(("content", "message"), [
    (b"", "model.safetensors is empty; download it again"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "a pointer of git-lfs .* git lfs pull"),
])  # fmt: skip
@pytest.mark.parametrize("part", [part for part, (_, kinds) in PARTS.items() if kinds])
def test_weights_that_were_not_downloaded_are_named(content: bytes, message: str, part: str, tmp_path: Path) -> None:
    build, readable = PARTS[part]
    CONFIGS[min(readable)]().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=message):
        build(str(tmp_path))


@pytest.mark.parametrize("part", PARTS)
def test_a_file_in_the_place_of_a_folder(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path))
    (tmp_path / "weights.bin").touch()
    for name in (str(tmp_path / "weights.bin"), "models:weights.bin"):
        with pytest.raises(InputError, match="is a file, where the folder of a model is wanted"):
            PARTS[part][0](name)


@pytest.mark.models
@pytest.mark.parametrize("name", ["whisper-base", "all-minilm-l6-v2", "efficientnet-lite0"])
def test_real_models_that_are_no_decoder(name: str, real_model: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match=r"no causal language model|reads both ways, for its configuration"):
        CausalDecoder(real_model(name))


@pytest.mark.models
def test_a_real_decoder_is_no_whisper(real_model: Callable[[str], str]) -> None:
    for build in (Whisper, CrossDecoder):
        with pytest.raises(InputError, match=r"a 'llama' model.* use mmprefix.decoders.CausalDecoder"):
            build(real_model("smollm2-135m-instruct"))
