"""Contract of every encoder of pretrained weights, on tiny random models of the real classes, from disk."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from mmprefix import parts
from mmprefix.data.collate import pad_media
from mmprefix.encoders.ast import AST
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.clap import Clap
from mmprefix.encoders.clip import Clip
from mmprefix.encoders.panns import Cnn14
from mmprefix.encoders.speech import Speech
from mmprefix.encoders.text import Text
from mmprefix.encoders.timm import Timm
from mmprefix.encoders.vit import ViT
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.media.source import Texts
from mmprefix.types import Features, Media
from tiny import encoders as tiny
from tiny.texts import KINDS, save_sentence_encoder, save_text

Make = Callable[[Path], Encoder]


def _torchaudio(folder: Path, kind: str, params: dict[str, object], normalize: bool = False) -> Speech:
    folder.mkdir(exist_ok=True)
    file = folder / "weights.pt"
    if not file.exists():
        tiny.save_speech_file(file, kind, params, normalize)
    return Speech(str(file), config=str(file.with_suffix(".json")))


def _folder(write: Callable[[Path], Path], folder: Path) -> str:
    return str(folder if folder.exists() else write(folder))


PICTURES: dict[str, Make] = {
    "clip": lambda path: Clip(_folder(tiny.save_clip, path)),
    "clip-unit": lambda path: Clip(_folder(tiny.save_clip, path), normalize=True),
    "clip-resnet": lambda path: Clip(_folder(lambda p: tiny.save_clip(p, tiny.CLIP_RESNET), path)),
    "clip-timm": lambda path: Clip(_folder(lambda p: tiny.save_clip(p, tiny.CLIP_TIMM), path)),
    **{
        kind: lambda path, kind=kind: ViT(_folder(lambda p: tiny.save_vision(p, kind), path))
        for kind in ("dinov2", "vit", "siglip", "clip_vision_model", "convnext", "resnet")
    },
    **{
        f"timm-{kind}": lambda path, kind=kind: Timm(_folder(lambda p: tiny.save_timm(p, kind), path))
        for kind in tiny.TIMM
    },
    "clip-hf": lambda path: ViT(_folder(lambda p: tiny.save_vision(p, "clip"), path)),
}
SOUNDS: dict[str, Make] = {
    "clap": lambda path: Clap(_folder(lambda p: tiny.save_clap(p, False), path)),
    "clap-cut": lambda path: Clap(_folder(lambda p: tiny.save_clap(p, False), path), long="cut"),
    "clap-fused": lambda path: Clap(_folder(lambda p: tiny.save_clap(p, True), path)),
    "whisper": lambda path: Whisper(_folder(tiny.save_whisper, path)),
    "whisper-cut": lambda path: Whisper(_folder(tiny.save_whisper, path), long="cut"),
    "whisper-whole": lambda path: Whisper(_folder(tiny.save_whisper, path), window="whole"),
    "whisper-short": lambda path: Whisper(_folder(tiny.save_whisper, path), silence=0.2),
    "ast": lambda path: AST(_folder(tiny.save_ast, path)),
    "cnn14": lambda path: Cnn14(_folder(tiny.save_panns, path), **tiny.PANNS),
    **{
        f"{kind}-{norm}": lambda path, kind=kind, norm=norm: Speech(
            _folder(lambda p: tiny.save_speech(p, kind, norm), path)
        )
        for kind in ("wav2vec2", "hubert", "wavlm")
        for norm in ("group", "layer")
    },
    "torchaudio-group": lambda path: _torchaudio(path, "Wav2Vec2", tiny.SPEECH),
    "torchaudio-layer": lambda path: _torchaudio(path, "Wav2Vec2", tiny.SPEECH_LAYER, normalize=True),
    "torchaudio-wavlm": lambda path: _torchaudio(path, "WavLM", tiny.WAVLM),
}
TEXTS: dict[str, Make] = {
    "sentences": lambda path: Text(_folder(save_sentence_encoder, path)),
    **{f"text-{kind}": lambda path, kind=kind: Text(_folder(lambda p: save_text(p, kind), path)) for kind in KINDS},
}
ALL = {**PICTURES, **SOUNDS, **TEXTS}
LENGTHS = (16000, 40000, 5000, 16000, 300, 33000)  # one to three windows, and less than one frame


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Encoder, Path]]:
    """Each encoder, and the folder of its model."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def take(name: str) -> tuple[Encoder, Path]:
        if name not in made:
            made[name] = ALL[name](root / name)
        return made[name], root / name

    return take


def _sound(length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / 16000
    return 0.4 * torch.sin(2 * torch.pi * (200 + 150 * seed) * time) + 0.05 * torch.randn(length, generator=generator)


def _sounds(lengths: tuple[int, ...] = LENGTHS, junk: float = 0.0, extra: int = 0) -> Media:
    clips = [_sound(length, seed) for seed, length in enumerate(lengths)]
    generator = torch.Generator().manual_seed(99)
    values = junk * torch.randn(len(clips), max(lengths) + extra, generator=generator)
    for row, clip in zip(values, clips, strict=True):
        row[: len(clip)] = clip
    return Media(values, torch.tensor(lengths))


def _pictures(encoder: Encoder, count: int = 3) -> Media:
    noise = np.random.default_rng(5).integers(0, 256, (count, 37, 45, 3), dtype=np.uint8)
    seen = [encoder.preprocess(Image.fromarray(picture), 0.0, None) for picture in noise]
    return Media(torch.stack(seen), torch.ones(count, dtype=torch.long))


def _media(encoder: Encoder) -> Media:
    if encoder.input_kind == "text":
        return pad_media([encoder.preprocess(Texts((text,)), 0.0, None) for text in ("a dog runs", "the cat", "dog")])
    return _sounds() if encoder.input_kind == "audio" else _pictures(encoder)


def _assert_same_features(one: Features, other: Features, tolerance: float = 0.0) -> None:
    assert torch.equal(one.mask, other.mask)
    assert_close(one.frames, other.frames, atol=tolerance, rtol=tolerance)
    assert_close(one.pooled, other.pooled, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_its_widths_are_those_of_its_features_and_it_is_frozen(name: str, shelf: Callable[[str], tuple[Encoder, Path]]):
    encoder, _ = shelf(name)
    media = _media(encoder)
    media.values.requires_grad_(media.values.is_floating_point())
    features = encoder(media)
    batch = len(media.lengths)
    assert features.frames.shape == (batch, features.mask.shape[1], encoder.dim)
    assert features.mask.shape[0] == batch
    assert features.mask.dtype == torch.bool
    assert features.pooled.shape == (batch, encoder.pooled_dim)
    assert encoder.pooled_dim > 0
    assert features.frames.dtype == features.pooled.dtype == torch.float32
    assert not features.frames.requires_grad
    assert not features.pooled.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert encoder.dim == 0 or features.frames[features.mask].std() > 0
    _assert_same_features(encoder(media), features)  # the same again, to the bit


@pytest.mark.parametrize("name", SOUNDS)
def test_a_batch_of_sounds_equals_its_clips_one_at_a_time(name: str, shelf: Callable[[str], tuple[Encoder, Path]]):
    encoder, _ = shelf(name)
    together = encoder(_sounds())
    for row, length in enumerate(LENGTHS):
        alone = encoder(Media(_sound(length, row)[None], torch.tensor([length])))
        size = alone.frames.shape[1]
        assert torch.equal(together.mask[row, :size], alone.mask[0])
        assert not together.mask[row, size:].any()
        real = alone.mask[0]
        assert_close(together.frames[row, :size][real], alone.frames[0][real], atol=1e-5, rtol=1e-5)
        assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PICTURES)
def test_a_batch_of_pictures_equals_them_one_at_a_time(name: str, shelf: Callable[[str], tuple[Encoder, Path]]):
    encoder, _ = shelf(name)
    media = _pictures(encoder)
    together = encoder(media)
    for row in range(3):
        alone = encoder(Media(media.values[row : row + 1], media.lengths[row : row + 1]))
        assert_close(together.frames[row], alone.frames[0], atol=1e-5, rtol=1e-5)
        assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)
    assert (together.pooled[0] - together.pooled[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", SOUNDS)
def test_padding_has_no_influence(name: str, shelf: Callable[[str], tuple[Encoder, Path]]):
    encoder, _ = shelf(name)
    _assert_same_features(encoder(_sounds(junk=0.5, extra=7000)), encoder(_sounds()), 1e-5)


@pytest.mark.parametrize("name", SOUNDS)
def test_frames_after_the_end_are_masked(name: str, shelf: Callable[[str], tuple[Encoder, Path]]):
    encoder, _ = shelf(name)
    counts = encoder(_sounds((2000, 8000, 16000))).mask.sum(1).tolist()
    if name == "whisper-whole":
        assert counts == [100, 100, 100]
    else:
        assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("name", SOUNDS)
def test_preprocessing_is_pickled_and_resamples(
    name: str, shelf: Callable[[str], tuple[Encoder, Path]], tmp_path: Path
):
    encoder, _ = shelf(name)
    preprocess = pickle.loads(pickle.dumps(encoder.preprocess))
    for rate in (16000, 44100):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * np.hanning(rate)
        soundfile.write(tmp_path / f"{rate}.wav", tone * 0.5, rate, subtype="FLOAT")
    slow, fast = (preprocess(tmp_path / f"{rate}.wav", 0.0, None) for rate in (16000, 44100))
    assert len(slow) == len(fast) == 16000
    assert_close(slow, fast, atol=1e-4, rtol=0)
    pair = [encoder(Media(clip[None], torch.tensor([16000]))) for clip in (slow, fast)]
    assert torch.equal(pair[0].mask, pair[1].mask)
    # The two files differ by rounding noise 80 dB down, which spectrograms in decibels show where nothing else sounds.
    assert torch.cosine_similarity(pair[0].pooled, pair[1].pooled).item() > 0.98
    part = preprocess(tmp_path / "44100.wav", 0.25, 0.75)
    assert_close(part, slow[4000:12000], atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", PICTURES)
def test_preprocessing_of_pictures_is_pickled(name: str, shelf: Callable[[str], tuple[Encoder, Path]], tmp_path: Path):
    encoder, _ = shelf(name)
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    pixels = pickle.loads(pickle.dumps(encoder.preprocess))(tmp_path / "a.png", 0.0, None)
    assert pixels.dtype == torch.float32
    assert pixels.shape[0] == 3
    assert torch.equal(pixels, encoder.preprocess(Image.open(tmp_path / "a.png"), 0.0, None))


@pytest.mark.parametrize("name", ALL)
def test_its_recipe_builds_it_again(name: str, shelf: Callable[[str], tuple[Encoder, Path]]):
    encoder, _ = shelf(name)
    again = parts.from_recipe(parts.to_recipe(encoder), Encoder)
    media = _media(encoder)
    _assert_same_features(again(media), encoder(media))
    assert again.identity == encoder.identity
    assert again.identity.revision is None


@pytest.mark.parametrize(
    "name", ["clip", "dinov2", "clap", "whisper", "ast", "sentences", "wav2vec2-group", "torchaudio-group"]
)
def test_identity_depends_on_the_weights_not_on_the_path(
    name: str, shelf: Callable[[str], tuple[Encoder, Path]], tmp_path: Path
):
    encoder, path = shelf(name)
    shutil.copytree(path, tmp_path / "moved")
    moved = ALL[name](tmp_path / "moved")
    assert moved.identity.sha256 == encoder.identity.sha256
    assert len(moved.identity.sha256) == 64
    weights = next(file for file in (tmp_path / "moved").iterdir() if file.suffix in (".safetensors", ".pt"))
    data = bytearray(weights.read_bytes())
    middle = len(data) // 2 + len(data) // 8
    data[middle - middle % 4] ^= 1  # the last bit of one number's fraction
    weights.write_bytes(data)
    if weights.suffix == ".pt":  # its archive is checked as a whole, so the number is changed in the state instead
        shutil.copy(path / weights.name, weights)
        state = torch.load(weights, weights_only=True)
        next(iter(state.values())).view(-1)[0] += 1e-3
        torch.save(state, weights)
    assert ALL[name](tmp_path / "moved").identity.sha256 != encoder.identity.sha256


@pytest.mark.parametrize("kind", [Clip, ViT, Timm, Clap, Whisper, Speech, AST, Text])
def test_unreadable_files_are_refused_by_name(kind: Callable[[str], Encoder], tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere"):
        kind(str(tmp_path / "nowhere"))
    text = tiny.save_gpt2(tmp_path / "text")
    with pytest.raises(InputError, match=r"text.*(gpt2|open_clip_config)") as error:
        kind(str(text))
    assert "\n" not in str(error.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"empty.*config"):
        kind(str(empty))


@pytest.mark.parametrize(
    "name", ["clip", "dinov2", "timm-vit", "clap", "whisper", "ast", "sentences", "wav2vec2-group", "torchaudio-group"]
)
def test_damaged_weights_are_refused_by_name(name: str, shelf: Callable[[str], tuple[Encoder, Path]], tmp_path: Path):
    _, path = shelf(name)
    shutil.copytree(path, tmp_path / "broken")
    weights = next(file for file in (tmp_path / "broken").iterdir() if file.suffix in (".safetensors", ".pt"))
    weights.write_bytes(weights.read_bytes()[:-500])
    with pytest.raises(InputError, match="broken") as error:
        ALL[name](tmp_path / "broken")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "clip",
        "siglip",
        "timm-convnext",
        "clap",
        "clap-fused",
        "whisper",
        "ast",
        "sentences",
        "text-clip",
        "wavlm-layer",
    ],
)
def test_smaller_types_hold_the_weights(name: str, shelf: Callable[[str], tuple[Encoder, Path]]):
    encoder, path = shelf(name)
    kind: Callable[..., Any] = type(encoder)
    half: Any = kind(str(path), dtype="bfloat16")
    assert next(half.network.parameters()).dtype == torch.bfloat16
    torch.manual_seed(0)
    media = _media(encoder)
    rounded, exact = half(media), encoder(media)
    assert rounded.frames.dtype == rounded.pooled.dtype == torch.float32
    assert torch.equal(rounded.mask, exact.mask)
    assert (
        torch.cosine_similarity(rounded.pooled, exact.pooled).min() > 0.9
    )  # units for bfloat16 round more than others
    with pytest.raises(InputError, match="dtype: 'int8'"):
        kind(str(path), dtype="int8")
