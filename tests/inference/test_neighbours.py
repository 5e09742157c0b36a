"""Neighbours beside a model: they choose among the texts of a call, and stand in the context of one that reads it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mmprefix
from mmprefix import InputError, Predictor
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.timm import Timm
from mmprefix.encoders.vit import ViT
from mmprefix.encoders.whisper import Whisper
from mmprefix.features.neighbours import Neighbours
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.resampler import Resampler
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.saved_model import ModelSettings
from mmprefix.types import Candidate, Media
from tiny.encoders import save_timm
from tiny.models import build_model, frozen_parts, random_picture, sound_bytes, tone

COUNT = 5
Counted = Callable[[Encoder], list[int]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return {**frozen_parts(folder), "timm": save_timm(folder / "timm", "efficientnet")}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    names = [str(folder / f"{number}.png") for number in range(COUNT)]
    for number, name in enumerate(names):
        random_picture(number).save(name)
    return names


@pytest.fixture(scope="module")
def saved(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models: of pictures, of pictures and sounds, and one of pictures that reads a context."""
    torch.manual_seed(1)
    branch = Branch(ViT(str(parts["image"])), partial(Resampler, length=3, heads=2))
    reads = PrefixLM({"image": branch}, CausalDecoder(str(parts["decoder"])), wording=PromptTemplate("{context}\n"))
    models = {"image": build_model(parts, "image"), "both": build_model(parts, "image", "audio"), "context": reads}
    folders = {name: tmp_path_factory.mktemp("models") / name for name in models}
    for name, model in models.items():
        Predictor(model, ModelSettings(GenerateOptions(max_new_tokens=6))).save(folders[name])
    return folders


@pytest.fixture(scope="module", params=["own", "other"])
def described(
    request: pytest.FixtureRequest, saved: dict[str, Path], parts: dict[str, Path], files: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """Neighbours of the pictures, themselves: each was described by the last of its beams, but for a word."""
    encoder = ViT(str(parts["image"])) if request.param == "own" else Timm(str(parts["timm"]))
    beams = mmprefix.load(saved["image"], device="cpu").candidates(files, num_return=5)
    captions = [[f"{texts[-1].text} {word}"] for texts, word in zip(beams, "abcde", strict=True)]
    vectors = Neighbours(encoder, torch.zeros(1, encoder.pooled_dim), [["a"]], 1, 1).embed(files)
    file = tmp_path_factory.mktemp("described") / "neighbours.safetensors"
    Neighbours(encoder, vectors, captions, 1, 2, judges=1).save(file)
    return file


def ranked(file: Path, files: list[str], texts: list[list[Candidate]]) -> list[list[str]]:
    """``texts`` of ``files`` in the order of their neighbours, encoded apart from any model."""
    neighbours = Neighbours.load(file)
    return [[text.text for text in row] for row in neighbours.best_first(neighbours.embed(files), texts)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Rows of each batch that an encoder is given from now on."""

    def count(encoder: Encoder) -> list[int]:
        sizes, encode = list[int](), encoder.encode

        def counting(media: Media) -> Any:
            sizes.append(len(media.values))
            return encode(media)

        monkeypatch.setattr(encoder, "encode", counting)
        return sizes

    return count


def test_every_call_that_writes_is_chosen_by_neighbours(
    saved: dict[str, Path], described: Path, files: list[str]
) -> None:
    beams = mmprefix.load(saved["image"], device="cpu").candidates(files, num_beams=5, num_return=5)
    wanted = ranked(described, files, beams)
    assert [texts[0] for texts in wanted] != [texts[0].text for texts in beams]
    model = mmprefix.load(saved["image"], device="cpu", neighbours=described)
    best = [texts[0] for texts in wanted]
    assert model(files) == best
    assert model(files, batch_size=2) == [model(file) for file in files] == best
    assert [[text.text for text in texts] for texts in model.candidates(files, num_return=2)] == [
        texts[:2] for texts in wanted
    ]
    streamed = list(model.stream(iter(files), batch_size=2))
    assert [texts[0].text for texts in streamed if not isinstance(texts, InputError)] == best
    scores = sorted(text.score for text in model.candidates(files[0], num_return=5))
    assert scores == pytest.approx(sorted(text.score for text in beams[0]), abs=1e-4)
    assert model(files, agreement=0) == mmprefix.load(saved["image"], device="cpu")(files)
    assert "".join(model.stream(files[0], agreement=0)) == model(files[0], agreement=0)
    score = mmprefix.load(saved["image"], device="cpu").score(files[0], "a")
    assert model.score(files[0], "a") == pytest.approx(score, abs=1e-4)  # a score is no choice


def test_each_input_is_encoded_once_though_another_cannot_be_read(
    saved: dict[str, Path], described: Path, files: list[str], tmp_path: Path, counted: Counted
) -> None:
    """The model's own encoder is not run a second time, and a broken file does not break up its batch."""
    model = mmprefix.load(saved["image"], device="cpu", neighbours=described)
    assert model.neighbours is not None
    own, theirs = model.model.encoder("image"), model.neighbours.encoder
    assert (own is theirs) == isinstance(theirs, ViT)
    wanted = model(files)
    (tmp_path / "cut.png").write_bytes(Path(files[0]).read_bytes()[:60])
    sizes = [counted(encoder) for encoder in {own, theirs}]
    results = list(model.stream([*files[:2], str(tmp_path / "cut.png"), *files[2:]]))
    assert [len(batches) for batches in sizes] == [1] * len(sizes)
    assert [sum(batches) for batches in sizes] == [COUNT] * len(sizes)
    assert isinstance(results[2], InputError)
    assert [texts[0].text for texts in results if not isinstance(texts, InputError)] == wanted


def test_an_encoder_that_was_trained_on_is_not_theirs(parts: dict[str, Path]) -> None:
    own = ViT(str(parts["image"]))
    neighbours = Neighbours(ViT(str(parts["image"])), torch.zeros(1, own.pooled_dim), [["a"]], 1, 1)
    assert neighbours.with_encoder_of([Timm(str(parts["timm"])), own]).encoder is own
    own.tune().freeze()
    assert neighbours.with_encoder_of([own]).encoder is neighbours.encoder


def test_inputs_of_other_branches_are_not_compared(saved: dict[str, Path], described: Path, files: list[str]) -> None:
    plain = mmprefix.load(saved["both"], device="cpu")
    model = mmprefix.load(saved["both"], device="cpu", neighbours=described)
    sound = sound_bytes(tone(0.3, 440.0))
    inputs: list[Any] = [{"image": files[0]}, {"audio": sound}, {"image": files[1], "audio": sound}]
    beams = plain.candidates(inputs, num_beams=5, num_return=5)
    wanted = ranked(described, [files[0], files[1]], [beams[0], beams[2]])
    assert model(inputs) == [wanted[0][0], beams[1][0].text, wanted[1][0]]


def test_a_model_that_reads_a_context_is_given_captions(
    saved: dict[str, Path], described: Path, files: list[str]
) -> None:
    plain = mmprefix.load(saved["context"], device="cpu")
    model = mmprefix.load(saved["context"], device="cpu", neighbours=described)
    contexts = Neighbours.load(described)(files)
    mixed = ["mine", *contexts[1:]]
    texts = ["a b"] * COUNT
    assert model.score(files, texts) == pytest.approx(plain.score(files, texts, context=contexts), abs=1e-4)
    assert model.score(files, texts, context=["mine", *[""] * 4]) == pytest.approx(
        plain.score(files, texts, context=mixed), abs=1e-4
    )
    assert plain.score(files, texts) != pytest.approx(plain.score(files, texts, context=contexts), abs=1e-4)
    assert model(files, agreement=0) == plain(files, context=contexts)
    assert "".join(model.stream(files[1], agreement=0)) == plain(files[1], context=contexts[1])
    beams = plain.candidates(files, context=contexts, num_beams=5, num_return=5)
    assert model(files) == [texts[0] for texts in ranked(described, files, beams)]
    chosen = model.choose(files, ["a", "b"])
    assert chosen[0] == pytest.approx(plain.choose(files, ["a", "b"], context=contexts)[0], abs=1e-4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda model, file: model.stream(file), "stream: neighbours choose among whole texts"),
        (lambda model, file: model(file, num_beams=1), "choose among several texts, and this search has one"),
        (lambda model, file: model(file, seed=1), "choose among several texts, and this search has one"),
        (lambda model, file: model(file, agreement=-1), "agreement -1: give a number from 0 on"),
        (lambda model, file: model(file, agreement=float("nan")), "agreement nan: give a number from 0 on"),
        (lambda model, file: model.choose(file, ["a", "b"]), "among captions, not among answers"),
        (lambda model, file: model.detect(file, answers=("a", "b")), "among captions, not among answers"),
        (lambda model, file: model.understand(file, schema="barista"), "among captions, not among answers"),
        (lambda model, file: next(model.stream_detect([file], answers=("a", "b"))), "among captions, not"),
    ],
)
def test_what_neighbours_cannot_do_is_refused(
    saved: dict[str, Path], described: Path, files: list[str], call: Callable[[Any, str], Any], text: str
) -> None:
    model = mmprefix.load(saved["image"], device="cpu", neighbours=described)
    with pytest.raises(InputError, match=text):
        call(model, files[0])


def test_drawn_texts_are_chosen_among_too(saved: dict[str, Path], described: Path, files: list[str]) -> None:
    plain = mmprefix.load(saved["image"], device="cpu").candidates(files, num_return=3, seed=1)
    model = mmprefix.load(saved["image"], device="cpu", neighbours=described)
    wanted = ranked(described, files, plain)
    assert [[text.text for text in texts] for texts in model.candidates(files, num_return=3, seed=1)] == wanted


def test_neighbours_of_another_kind_and_a_weight_without_any_are_refused(
    saved: dict[str, Path], parts: dict[str, Path], files: list[str], tmp_path: Path
) -> None:
    encoder = Whisper(str(parts["audio"]))
    sounds = Neighbours(encoder, torch.ones(1, encoder.pooled_dim), [["a"]], 1, 1)
    sounds.save(tmp_path / "sounds")
    with pytest.raises(InputError, match="compare inputs of kind audio, and this model reads none"):
        mmprefix.load(saved["image"], device="cpu", neighbours=tmp_path / "sounds")
    with pytest.raises(InputError, match=r"is not what mmprefix\.recipes\.retrieve\.neighbours writes"):
        mmprefix.load(saved["image"], device="cpu", neighbours=files[0])
    with pytest.raises(InputError, match="agreement 2: weighs neighbours=FILE"):
        mmprefix.load(saved["image"], device="cpu")(files[0], agreement=2.0)
