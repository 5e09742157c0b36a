"""Importers: released checkpoints become saved models that caption; broken and malicious ones are refused by name."""

from __future__ import annotations

import json
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import mmprefix
from benchmarks.lib import released_checkpoints
from mmprefix.cli.main import main
from mmprefix.decoders.word_level import END
from mmprefix.errors import InputError
from mmprefix.importers.prefix_aac import Trained, aac_maps, prefix_aac
from mmprefix.importers.tensor_map import TensorMap, check, fill, is_equal, tensor_maps, without_buffers
from mmprefix.types import Prefix
from mmprefix.weights import dry_run
from tiny import encoders as tiny_encoders
from tiny.decoders import make_tokenizer
from tiny.models import random_picture, sound_bytes, tone
from tiny.recorded import PARITY, needs_parity

ROOT = Path(__file__).resolve().parents[2]

WORDS = len(make_tokenizer())
GPT = released_checkpoints.Gpt2Sizes(layers=2, width=32, vocabulary=WORDS, positions=128)
AAC = released_checkpoints.PrefixAacSizes(
    words=40, channels=(4, 6, 8), bands=16, classes=20, kernel=7, lengths=(3, 2), layers=1
)
KINDS = {
    "mlp": {"mapper": "mlp", "length": 4},
    "linear": {"mapper": "linear", "length": 6},
    "transformer": {"mapper": "transformer", "length": 5, "clip_length": 3, "layers": 2},
}


class Shelf:
    """Frozen parts on disk, checkpoints in the released form for them, and arguments of the shell's importer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny_encoders.save_clip(folder / "clip")
        self.lm = released_checkpoints.random_weights(GPT.shapes("transformer."), seed=5)
        self.decoder = folder / "gpt2"
        config = GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=WORDS, n_positions=128)
        model = GPT2LMHeadModel(config)
        model.load_state_dict(self.lm, strict=False)
        model.save_pretrained(self.decoder)
        make_tokenizer().save_pretrained(self.decoder)
        random_picture(3).save(folder / "picture.png")
        (folder / "sound.wav").write_bytes(sound_bytes(tone(2.0, 300.0)))
        (folder / "words.txt").write_text(
            "".join(f"{'!' if not i else END if i == 13 else f'w{i}'}\n" for i in range(40))
        )

    def clipcap(self, kind: str, tuned: bool = False) -> dict[str, Tensor]:
        state = released_checkpoints.random_weights(
            released_checkpoints.clipcap_shapes(features=24, gpt=GPT, **KINDS[kind])
        )
        if not tuned:
            state |= {f"gpt.{name}": value for name, value in self.lm.items()}
        return state | {"gpt.lm_head.weight": state["gpt.transformer.wte.weight"]}

    def aac(self, tuned: bool = False, words: int = 40) -> dict[str, Tensor]:
        sizes = released_checkpoints.PrefixAacSizes(**{**vars(AAC), "words": words})
        state = released_checkpoints.random_weights(sizes.shapes(GPT))
        if not tuned:
            state |= {name.replace("transformer.", "gpt."): value for name, value in self.lm.items()}
        return state

    def clip_words(self) -> list[str]:
        return ["--encoder", str(self.folder / "clip"), "--normalize", "no", "--decoder", str(self.decoder)]

    def aac_words(self) -> list[str]:
        words = str(self.folder / "words.txt")
        return ["--dataset", "audiocaps", "--vocabulary", words, "--decoder", str(self.decoder), "--heads", "4"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    torch.manual_seed(0)
    return Shelf(tmp_path_factory.mktemp("shelf"))


def bytes_of(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Error message of one line with which the shell refuses an import."""
    capsys.readouterr()
    assert main(["import", *map(str, words)]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert message.startswith("mmprefix: ")
    return message.removeprefix("mmprefix: ")


# ------------------------------------------------------------------------------------------------------------ ClipCap


@pytest.mark.parametrize("kind", KINDS)
def test_clipcap(kind: str, shelf: Shelf, tmp_path: Path) -> None:
    torch.save(shelf.clipcap(kind), tmp_path / "coco.pt")
    target = tmp_path / "model"
    assert main(["import", "clipcap", str(tmp_path / "coco.pt"), str(target), *shelf.clip_words()]) == 0
    kept = load_file(target / "model.safetensors")
    released = {k: v for k, v in shelf.clipcap(kind).items() if k.startswith("clip_project.")}
    assert sorted(t.shape for t in kept.values()) == sorted(t.shape for t in released.values())  # nothing of GPT-2
    assert sum(f.stat().st_size for f in target.iterdir()) < bytes_of(released) + 16000
    model = mmprefix.load(target, device="cpu")
    assert isinstance(model(shelf.folder / "picture.png", max_new_tokens=5), str)
    assert model.options.ranking == "clipcap"
    assert (model.options.num_beams, model.options.max_new_tokens) == (5, 67)
    encoder = model.model.encoder("image")
    pooled = torch.randn(3, encoder.pooled_dim)
    features = mmprefix.types.Features(torch.zeros(3, 0, 0), torch.zeros(3, 0, dtype=torch.bool), pooled)
    embeds = model.model.mappers["image"](features).embeds
    assert torch.allclose(embeds, published_mapper(kind, released, pooled), atol=1e-5)


def published_mapper(kind: str, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """ClipCap's published mappers as plain tensor operations."""
    t = {name.removeprefix("clip_project."): value for name, value in tensors.items()}
    f = torch.nn.functional
    if kind == "linear":
        return f.linear(x, t["weight"], t["bias"]).view(len(x), -1, 32)
    if kind == "mlp":
        hidden = f.linear(x, t["model.0.weight"], t["model.0.bias"]).tanh()
        return f.linear(hidden, t["model.2.weight"], t["model.2.bias"]).view(len(x), -1, 32)
    x = f.linear(x, t["linear.weight"], t["linear.bias"]).view(len(x), -1, 32)
    n = x.shape[1]
    x = torch.cat([x, t["prefix_const"].expand(len(x), -1, -1)], dim=1)
    return published_transformer(x, t, layers=2, heads=8)[:, n:]


def published_transformer(x: Tensor, t: dict[str, Tensor], layers: int, heads: int) -> Tensor:
    """Transformer of both published programs as plain tensor operations."""
    f, size = torch.nn.functional, 32 // heads
    for i in range(layers):
        p = {name.split(".", 3)[3]: value for name, value in t.items() if name.startswith(f"transformer.layers.{i}.")}
        y = f.layer_norm(x, (32,), p["norm1.weight"], p["norm1.bias"])
        q = (y @ p["attn.to_queries.weight"].T).unflatten(-1, (heads, size))
        k, v = (y @ p["attn.to_keys_values.weight"].T).unflatten(-1, (2, heads, size)).unbind(2)
        weight = (torch.einsum("bnhd,bmhd->bnmh", q, k) / size**0.5).softmax(2)
        y = torch.einsum("bnmh,bmhd->bnhd", weight, v).flatten(2)
        x = x + f.linear(y, p["attn.project.weight"], p["attn.project.bias"])
        y = f.layer_norm(x, (32,), p["norm2.weight"], p["norm2.bias"])
        y = f.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]).relu()
        x = x + f.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    return x


def test_a_tuned_gpt2_is_kept_and_old_buffers_are_dropped(shelf: Shelf, tmp_path: Path) -> None:
    state = shelf.clipcap("mlp", tuned=True)
    old = dict(state)
    for i in range(2):
        old[f"gpt.transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.uint8).tril()
        old[f"gpt.transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(
        old, tmp_path / "tuned.pt", _use_new_zipfile_serialization=False
    )  # the format of older versions of torch
    target = tmp_path / "model"
    assert main(["import", "clipcap", str(tmp_path / "tuned.pt"), str(target), *shelf.clip_words()]) == 0
    model = mmprefix.load(target, device="cpu")
    decoder: Any = model.model.decoder
    assert not decoder.frozen
    lm = decoder.lm.state_dict()
    assert all(torch.equal(lm[name], state[f"gpt.{name}"]) for name in lm)
    del state["gpt.lm_head.weight"]  # tied: saved once
    size = sum(f.stat().st_size for f in target.iterdir())
    assert bytes_of(state) <= size < bytes_of(state) + 20000
    model.save(tmp_path / "again")  # the origin is kept
    assert "imported" in (tmp_path / "again" / "mmprefix.yaml").read_text()
    assert "tuned.pt" in (tmp_path / "again" / "README.md").read_text()


def test_a_mapper_alone_is_enough(shelf: Shelf, tmp_path: Path) -> None:
    mapper = {k: v for k, v in shelf.clipcap("mlp").items() if k.startswith("clip_project.")}
    torch.save(mapper, tmp_path / "only.pt")
    assert main(["import", "clipcap", str(tmp_path / "only.pt"), str(tmp_path / "m"), *shelf.clip_words()]) == 0
    assert mmprefix.load(tmp_path / "m", device="cpu").model.decoder.frozen


def test_a_file_of_the_hub(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "snapshots" / commit / "sub").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    torch.save(shelf.clipcap("mlp"), repo / "snapshots" / commit / "sub" / "coco.pt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for number, name in enumerate(("hf://owner/name/sub/coco.pt", f"hf://owner/name@{commit}/sub/coco.pt")):
        assert main(["import", "clipcap", name, str(tmp_path / f"m{number}"), *shelf.clip_words()]) == 0
        model = mmprefix.load(tmp_path / f"m{number}", device="cpu")
        assert isinstance(model(shelf.folder / "picture.png", max_new_tokens=2), str)


def test_options_that_a_file_does_not_determine_are_required(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(shelf.clipcap("mlp"), tmp_path / "c.pt")
    torch.save(shelf.aac(), tmp_path / "a.pt")
    clip, gpt = str(shelf.folder / "clip"), ["--decoder", shelf.decoder]
    assert "--encoder: " in refusal(capsys, "clipcap", tmp_path / "c.pt", tmp_path / "m", "--normalize", "no", *gpt)
    assert "--normalize: " in refusal(capsys, "clipcap", tmp_path / "c.pt", tmp_path / "m", "--encoder", clip, *gpt)
    assert "--dataset: " in refusal(capsys, "prefix-aac", tmp_path / "a.pt", tmp_path / "m", *gpt)
    both = ["--dataset", "both", "--heads", 4, *gpt]
    assert "--relu: give yes or no" in refusal(capsys, "prefix-aac", tmp_path / "a.pt", tmp_path / "m", *both)
    no_words = ["--dataset", "clotho", "--heads", 4, *gpt]
    message = refusal(capsys, "prefix-aac", tmp_path / "a.pt", tmp_path / "m", *no_words)
    assert "its head has 40 words" in message
    assert "--vocabulary FILE" in message
    (tmp_path / "few.txt").write_text("<eos>\na\n")
    few = [*no_words, "--vocabulary", tmp_path / "few.txt"]
    assert "has 2 words, but the head" in refusal(capsys, "prefix-aac", tmp_path / "a.pt", tmp_path / "m", *few)
    other = tiny_encoders.save_clip(tmp_path / "other", {**tiny_encoders.CLIP, "embed_dim": 20})
    wide = ["--encoder", other, "--normalize", "no", *gpt]
    assert "features of width 24, but those of" in refusal(capsys, "clipcap", tmp_path / "c.pt", tmp_path / "m", *wide)
    assert not (tmp_path / "m").exists()


# --------------------------------------------------------------------------------------------------------- Prefix-AAC


def test_prefix_aac(shelf: Shelf, tmp_path: Path) -> None:
    state = shelf.aac()
    torch.save(state, tmp_path / "aac.pt")
    target = tmp_path / "model"
    assert main(["import", "prefix-aac", str(tmp_path / "aac.pt"), str(target), *shelf.aac_words()]) == 0
    kept = load_file(target / "model.safetensors")
    trained = {
        k: v for k, v in state.items() if not k.startswith("gpt.") and ".stft." not in k and not k.endswith(".pe")
    }
    assert sorted(t.numel() for t in kept.values()) == sorted(t.numel() for t in trained.values())
    size = sum(f.stat().st_size for f in target.iterdir())
    assert size < bytes_of(trained) + 32000
    model = mmprefix.load(target, device="cpu")
    text = model(shelf.folder / "sound.wav")
    assert text.endswith(".")
    assert all(word.startswith("w") or word == "!" for word in text.removesuffix(".").split())
    encoder: Any = model.model.encoder("audio")
    assert encoder.init_args["model"] is None
    assert torch.equal(encoder.net.mel, state["audio_encoder.logmel_extractor.melW"])
    assert encoder.preprocess.seconds == 10
    mapper: Any = model.model.mappers["audio"]
    temporal, overall = mapper.mappers
    assert temporal.relu
    assert torch.equal(temporal.project.weight, state["temporal_mappingnetwork.conv.weight"].flatten(1))
    assert torch.equal(overall.project.weight, state["global_mappingnetwork.conv.weight"].flatten(1))


@pytest.mark.parametrize(("dataset", "seconds", "longer", "relu"), [
    ("clotho", 30.0, "cut", False), ("audiocaps", 10.0, "cut", True), ("both", 10.0, "compress", True)
])  # fmt: skip
def test_each_data_set(dataset: str, seconds: float, longer: str, relu: bool, shelf: Shelf, tmp_path: Path) -> None:
    """With GPT-2's own tokens, as the authors train across data sets; a caption ends with a full stop."""
    torch.save(shelf.aac(words=WORDS), tmp_path / "aac.pt")
    words = ["--dataset", dataset, "--decoder", str(shelf.decoder), "--heads", "4"]
    words += ["--relu", "yes"] if dataset == "both" else []
    assert main(["import", "prefix-aac", str(tmp_path / "aac.pt"), str(tmp_path / "m"), *words]) == 0
    model = mmprefix.load(tmp_path / "m", device="cpu")
    encoder: Any = model.model.encoder("audio")
    assert (encoder.preprocess.seconds, encoder.preprocess.longer) == (seconds, longer)
    assert all(mapper.relu == relu for mapper in model.model.mappers["audio"].mappers)  # type: ignore[union-attr]
    decoder: Any = model.model.decoder
    assert decoder.frozen
    assert decoder.stop_ids(exactly=True).tolist() == [
        decoder.tokenizer("a.", add_special_tokens=False)["input_ids"][-1]
    ]
    assert isinstance(model(shelf.folder / "sound.wav", max_new_tokens=3), str)


def test_the_parts_of_prefix_aac_in_a_folder(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, folder = shelf.aac(), tmp_path / "parts"
    folder.mkdir()
    for part in ("audio_encoder", "temporal_mappingnetwork", "global_mappingnetwork", "language_header"):
        own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        torch.save(own, folder / f"{part}_in_Audiocaps.pt")
    torch.save(state, tmp_path / "whole.pt")
    for source, name in ((folder, "a"), (tmp_path / "whole.pt", "b")):
        assert main(["import", "prefix-aac", str(source), str(tmp_path / name), *shelf.aac_words()]) == 0
    from_parts, from_whole = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert from_parts.keys() == from_whole.keys()
    assert all(torch.equal(from_parts[name], from_whole[name]) for name in from_parts)
    (folder / "language_header_in_Audiocaps.pt").unlink()
    message = refusal(capsys, "prefix-aac", folder, tmp_path / "c", *shelf.aac_words())
    assert "expected one file language_header*.pt" in message


def test_another_language_model_in_the_file_is_kept(shelf: Shelf, tmp_path: Path) -> None:
    state = shelf.aac(tuned=True)
    torch.save(state, tmp_path / "aac.pt")
    assert main(["import", "prefix-aac", str(tmp_path / "aac.pt"), str(tmp_path / "m"), *shelf.aac_words()]) == 0
    decoder: Any = mmprefix.load(tmp_path / "m", device="cpu").model.decoder
    assert not decoder.frozen
    lm = decoder.lm.transformer.state_dict()
    assert all(torch.equal(lm[name], state[f"gpt.{name}"]) for name in lm)


@needs_parity
def test_the_keys_of_a_real_size_model_are_those_of_the_original() -> None:
    recorded = json.loads((PARITY / "aac_state_dict_keys.json").read_text())
    theirs = {name: tuple(shape) for name, shape, _ in recorded["keys_in_module_order"]}
    assert released_checkpoints.PrefixAacSizes().shapes(released_checkpoints.Gpt2Sizes()) == theirs
    model = real_size()
    constants = {name for name in theirs if ".stft." in name or name.endswith("pos_encoder.pe")}
    ours = {entry.name: entry.shape for entry in aac_maps(model)}
    lm = {name: shape for name, shape in theirs.items() if name.startswith("gpt.")}
    assert {**ours, **lm} == {name: shape for name, shape in theirs.items() if name not in constants}
    counts = recorded["n_parameters"]
    temporal, overall = model.mappers["audio"].mappers  # type: ignore[union-attr]
    count = {"temporal_mappingnetwork": temporal, "global_mappingnetwork": overall}
    for name, part in count.items():
        assert sum(p.numel() for p in part.parameters()) == counts[name]
    own_head: Any = model.decoder.own_head
    assert own_head.weight.numel() == counts["language_header"]
    assert sum(p.numel() for p in model.encoder("audio").parameters()) + 257 * (64 + 2 * 512) == counts["audio_encoder"]


def real_size() -> Any:
    """Prefix-AAC model of the published size, without weights."""
    from mmprefix.decoders.word_level import WordDecoder
    from mmprefix.encoders.panns import Cnn14
    from mmprefix.mappers.parallel import Parallel
    from mmprefix.mappers.prefix_aac import PrefixAAC
    from mmprefix.model import Branch, PrefixLM

    words = [END, *(f"w{i}" for i in range(7910))]
    with dry_run.without_weights():
        decoder = WordDecoder("openai-community/gpt2", words)
        encoder = Cnn14(None, rate=16000, reading="prefix-aac", seconds=10)
    mapper = partial(Parallel, mappers=[PrefixAAC, partial(PrefixAAC, reads="summary", length=11)])
    return PrefixLM({"audio": Branch(encoder, mapper)}, decoder)


def test_tensors_are_checked_before_any_is_filled() -> None:
    own = {"a.weight": torch.zeros(2, 6), "a.bias": torch.zeros(2)}
    maps = [TensorMap("x.weight", (2, 3, 1, 2), own["a.weight"]), *tensor_maps("x.", {"bias": own["a.bias"]})]
    tensors = {"x.weight": torch.arange(12.0).view(2, 3, 1, 2), "x.bias": torch.ones(2)}
    with pytest.raises(InputError, match=r"file: tensor 'x\.bias' of M has the shape"):
        check(maps, {**tensors, "x.bias": torch.ones(3)}, "file", "M")
    assert not own["a.bias"].any()  # nothing was filled
    check(maps, tensors, "file", "M")
    fill(maps, tensors)
    assert torch.equal(own["a.weight"], torch.arange(12.0).view(2, 6))
    assert is_equal([maps[1]], tensors)
    assert not is_equal([maps[1]], {"x.bias": torch.zeros(2)})
    old = {"gpt.h.0.attn.bias": own["a.bias"], "gpt.h.0.attn.c_attn.bias": own["a.bias"], "x.attn.bias": own["a.bias"]}
    assert without_buffers(old).keys() == {"gpt.h.0.attn.c_attn.bias", "x.attn.bias"}


# ------------------------------------------------------------------------------------------------ broken and malicious


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("system", ["clipcap", "prefix-aac"])
def test_code_in_a_checkpoint_never_runs(
    system: str, shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = shelf.clipcap("mlp") if system == "clipcap" else shelf.aac()
    words = shelf.clip_words() if system == "clipcap" else shelf.aac_words()
    mark, file = tmp_path / "ran", tmp_path / "evil.pt"
    for malicious in ({**state, "x": Malicious(mark)}, Malicious(mark), {"model": Malicious(mark)}):
        for zipped in (True, False):
            torch.save(malicious, file, _use_new_zipfile_serialization=zipped)
            assert "is refused: it would have posix.system run" in refusal(capsys, system, file, tmp_path / "m", *words)
    file.write_bytes(pickle.dumps({"a": Malicious(mark)}))
    assert "is no checkpoint" in refusal(capsys, system, file, tmp_path / "m", *words)
    vocabulary = tmp_path / "words.pickle"
    vocabulary.write_bytes(pickle.dumps(["a", Malicious(mark)]))
    if system == "prefix-aac":
        torch.save(state, file)
        message = refusal(capsys, system, file, tmp_path / "m", *words, "--vocabulary", vocabulary)
        assert "wants posix.system, and is refused" in message
    assert not mark.exists()
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("system", "name", "value"), [
    ("prefix-aac", "language_header.weight", torch.tensor(1.0)),
    ("prefix-aac", "temporal_mappingnetwork.pos_encoder.pe", torch.zeros(5000, 32)),
    ("prefix-aac", "global_mappingnetwork.conv.weight", torch.zeros(32, 1, 1, 0)),
    ("clipcap", "clip_project.model.0.weight", torch.eye(3).to_sparse()),
    ("clipcap", "clip_project.model.0.weight", torch.zeros(64, 24, device="meta")),
    ("clipcap", "clip_project.model.0.weight", torch.zeros(1).expand(10**13, 24)),
    ("clipcap", "clip_project.model.0.weight", torch.zeros(64, 24, dtype=torch.int32)),
    ("clipcap", "clip_project.model.0.weight", torch.full((64, 24), float("nan"))),
])  # fmt: skip
def test_odd_tensors_are_refused_by_name(
    system: str, name: str, value: Tensor, shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, words = (
        (shelf.aac(), shelf.aac_words()) if system == "prefix-aac" else (shelf.clipcap("mlp"), shelf.clip_words())
    )
    torch.save({**state, name: value}, tmp_path / "odd.pt")
    message = refusal(capsys, system, tmp_path / "odd.pt", tmp_path / "m", *words)
    assert "odd.pt" in message
    assert name in message or "division by zero" in message or "by zero" in message or "dimension" in message
    assert not (tmp_path / "m").exists()


def test_a_mapper_for_another_decoder_is_refused(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = released_checkpoints.Gpt2Sizes(layers=1, width=64, vocabulary=WORDS, positions=16)
    state = released_checkpoints.random_weights(
        released_checkpoints.clipcap_shapes(features=24, gpt=wide, **KINDS["transformer"])
    )
    torch.save({k: v for k, v in state.items() if k.startswith("clip_project.")}, tmp_path / "wide.pt")
    message = refusal(capsys, "clipcap", tmp_path / "wide.pt", tmp_path / "m", *shelf.clip_words())
    assert "its mapper is for a decoder of width 64, --decoder has 32" in message


@pytest.mark.parametrize("kind", [*KINDS, "prefix-aac"])
def test_broken_checkpoints_are_refused_by_name(
    kind: str, shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = "prefix-aac" if kind == "prefix-aac" else "clipcap"
    state = shelf.aac() if kind == "prefix-aac" else shelf.clipcap(kind)
    words = shelf.aac_words() if kind == "prefix-aac" else shelf.clip_words()
    file = tmp_path / "broken.pt"

    def message_for(broken: Any) -> str:
        torch.save(broken, file)
        message = refusal(capsys, system, file, tmp_path / "m", *words)
        assert str(file) in message
        return message

    for name, value in list(state.items())[:: 5 if kind == "prefix-aac" else 2]:
        if name in ("gpt.lm_head.weight",) or value.numel() == 1:
            continue
        if ".stft." in name or name.endswith("pos_encoder.pe"):
            continue  # constants of the original may be missing
        without = {k: v for k, v in state.items() if k != name}
        assert "'" in message_for(without), name  # names the tensor, or one that determines a size
        if value.ndim:
            message_for({**state, name: torch.zeros(*value.shape[:-1], value.shape[-1] + 1)})
    assert "'extra.weight', which " in message_for({**state, "extra.weight": torch.ones(2)})
    assert "is no tensor" in message_for({**state, "epoch": 3})
    torch.save(state, file)
    whole = file.read_bytes()
    for part in (0, 10, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:part])
        assert "is no checkpoint" in refusal(capsys, system, file, tmp_path / "m", *words)
    file.write_text("<!DOCTYPE html><title>Sign in</title>")
    assert "is no checkpoint" in refusal(capsys, system, file, tmp_path / "m", *words)
    assert "no such file" in refusal(capsys, system, tmp_path / "none.pt", tmp_path / "m", *words)
    assert "expected hf://OWNER/NAME/FILE" in refusal(capsys, system, "hf://owner/file.pt", tmp_path / "m", *words)
    assert not (tmp_path / "m").exists()


def test_a_folder_with_other_files_is_left_alone(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(shelf.clipcap("mlp"), tmp_path / "c.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    message = refusal(capsys, "clipcap", tmp_path / "c.pt", tmp_path / "mine", *shelf.clip_words())
    assert "is not empty and no saved model" in message
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_constants_that_differ_from_the_computed_ones_are_refused(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = shelf.aac()
    for name, message in (
        ("audio_encoder.spectrogram_extractor.stft.conv_real.weight", "is not that of Hann windows"),
        ("temporal_mappingnetwork.pos_encoder.pe", "are not sinusoids"),
    ):
        torch.save({**state, name: state[name] + 0.1}, tmp_path / "a.pt")
        assert message in refusal(capsys, "prefix-aac", tmp_path / "a.pt", tmp_path / "m", *shelf.aac_words())


def test_the_imported_model_is_the_published_one(shelf: Shelf) -> None:
    """Sound to prefix equals plain operations on the same tensors, at sizes that no fixture has."""
    state, words = shelf.aac(), (shelf.folder / "words.txt").read_text().split()
    values = torch.from_numpy(tone(2.0, 500.0))[None]
    for relu in (True, False):
        model = prefix_aac(
            state, "x", Trained(2.0, "cut", relu), decoder=str(shelf.decoder), words=words, heads=4
        ).eval()
        prefix = model.build_prefix({"audio": mmprefix.types.Media(values, torch.tensor([values.shape[1]]))})
        assert isinstance(prefix, Prefix)
        assert prefix.mask.all()
        expected = sound_to_prefix(state, values, relu)
        assert expected.shape == (1, 5, 32)
        assert torch.allclose(prefix.embeds, expected, atol=1e-4, rtol=1e-4)


def sound_to_prefix(state: dict[str, Tensor], values: Tensor, relu: bool) -> Tensor:
    """Prefix of Prefix-AAC by plain operations on its tensors, spectrum included."""
    f = torch.nn.functional
    t = {name.removeprefix("audio_encoder."): value for name, value in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (t[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return f.batch_norm(x, mean, var, weight, bias)

    padded = f.pad(values, (256, 256), mode="reflect")[:, None]
    real, imaginary = (
        f.conv1d(padded, t[f"spectrogram_extractor.stft.conv_{p}.weight"], stride=320) for p in ("real", "imag")
    )
    mel = (real**2 + imaginary**2).transpose(1, 2) @ t["logmel_extractor.melW"]
    x = norm((10 * mel.clamp(min=1e-10).log10()).transpose(1, 2)[..., None], "bn0").transpose(1, 3)  # (B 1 T M)
    for i in (1, 2, 3):
        for n in (1, 2):
            x = norm(f.conv2d(x, t[f"conv_block{i}.conv{n}.weight"], padding=1), f"conv_block{i}.bn{n}").relu()
        x = f.avg_pool2d(x, 2 if i < 3 else 1)
    y = x.mean(3)
    y = f.linear(y.amax(2) + y.mean(2), t["fc1.weight"], t["fc1.bias"]).relu()
    tags = f.linear(y, t["fc_audioset.weight"], t["fc_audioset.bias"]).sigmoid()
    parts = []
    for kind, features in (("temporal", x), ("global", f.pad(tags, (0, 1))[:, None, None])):
        name = f"{kind}_mappingnetwork"
        kernel = t[f"{name}.conv.weight"].shape[-1]
        y = f.conv2d(
            features, t[f"{name}.conv.weight"], t[f"{name}.conv.bias"], stride=(1, 1 if kind == "temporal" else kernel)
        )
        y = norm(y, f"{name}.bn_conv")
        y = (y.relu() if relu else y).flatten(2).transpose(1, 2)
        if kind == "temporal":
            y = y + t[f"{name}.pos_encoder.pe"][: y.shape[1], 0]
        const = t[f"{name}.prefix_const"]
        y = torch.cat([y, const.expand(len(y), -1, -1)], dim=1)
        own = {
            key.removeprefix(f"{name}."): value for key, value in t.items() if key.startswith(f"{name}.transformer.")
        }
        parts.append(published_transformer(y, own, layers=1, heads=4)[:, -len(const) :])
    return torch.cat(parts, dim=1)
