"""Cnn14: published files, frames and summary, clips of one length, SpecAugment, and errors.

Agreement with the original is tested in tests/parity/test_prefix_aac.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from mmprefix.encoders.panns import Cnn14, Cnn14Net
from mmprefix.errors import InputError
from mmprefix.media.source import Waveform
from mmprefix.types import Media
from tiny import encoders as tiny_encoders

PANNS = tiny_encoders.PANNS


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    return tiny_encoders.save_panns(tmp_path_factory.mktemp("panns") / "Cnn14_16k_mAP=0.438.pth")


def sound(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def features_of(encoder: Cnn14, clip: Tensor) -> Any:
    return encoder(Media(clip[None], torch.tensor([len(clip)])))


def test_published_file_names(file: Path) -> None:
    encoder = Cnn14(str(file), **PANNS)
    assert encoder.identity.source == str(file)
    assert len(encoder.identity.sha256) == 64
    assert (encoder.dim, encoder.pooled_dim) == (8, 8)
    again = torch.load(file, weights_only=False)["model"]
    assert torch.equal(encoder.net.mel, again["logmel_extractor.melW"])
    assert torch.equal(encoder.net.blocks[2].conv2.weight, again["conv_block3.conv2.weight"])  # type: ignore[union-attr]


def test_the_mel_filters_of_the_file_are_used(file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=False)
    state["model"]["logmel_extractor.melW"] *= 10
    torch.save(state, tmp_path / "louder.pth")
    plain, louder = Cnn14(str(file), **PANNS), Cnn14(str(tmp_path / "louder.pth"), **PANNS)
    clip = sound(16000)[None]
    assert torch.allclose(louder.net.log_mel(clip), plain.net.log_mel(clip) + 10.0, atol=1e-3)  # ten times: 10 dB


def test_frames_and_summary_are_of_one_feature_map(file: Path) -> None:
    plain = Cnn14(str(file), **PANNS, hop=320)
    whole = Cnn14(str(file), **PANNS, reading="prefix-aac")
    assert (whole.dim, whole.pooled_dim) == (8 * 4, 20)
    clip = sound(20000)
    a, b = features_of(plain, clip), features_of(whole, clip)
    assert torch.allclose(b.frames.unflatten(2, (8, 4)).mean(3), a.frames, atol=1e-6)
    assert torch.allclose(b.pooled, torch.sigmoid(whole.net.fc_audioset(a.pooled)), atol=1e-6)
    assert features_of(Cnn14(str(file), **PANNS), clip).frames.shape[1] == (20000 // 160 + 1) // 4  # PANNs' own hop


@pytest.mark.parametrize(("seconds", "times"), [(29.6, 46), (30.0, 46), (29.0, 45)])
def test_thirty_seconds_are_shortened_for_the_summary_only(
    seconds: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code takes the maximum over three when exactly 46 frames come out."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"rate": 16000, "mels": 32, "channels": (2, 2, 2, 2, 2, 4), "classes": 5}
    encoder = Cnn14(None, **sizes, reading="prefix-aac", seconds=seconds)
    with torch.no_grad():
        for weight in encoder.net.parameters():
            weight.copy_(torch.rand(weight.shape))  # none is negative: something comes through
    values = sound(round(seconds * 16000)) * torch.linspace(0, 1, round(seconds * 16000)) ** 4
    features = features_of(encoder, values)
    assert features.frames.shape == (1, times, 4)
    x = features.frames.transpose(1, 2)[..., None]  # (1 C T 1): one band is left
    monkeypatch.setattr(torch, "sigmoid", lambda logits: logits)  # which large numbers would saturate
    features = features_of(encoder, values)
    shortened = torch.nn.functional.max_pool2d(x, (3, 1)) if times == 46 else x
    summary = encoder.net.fc_audioset(encoder.net.embedding(shortened))
    assert torch.allclose(features.pooled, summary, rtol=1e-5)
    other = torch.nn.functional.max_pool2d(x, (3, 1)) if times != 46 else x
    assert not torch.allclose(features.pooled, encoder.net.fc_audioset(encoder.net.embedding(other)), rtol=1e-3)


def test_clips_are_brought_to_one_length(file: Path, tmp_path: Path) -> None:
    encoder = Cnn14(str(file), **PANNS, seconds=1.0)
    for seconds in (0.5, 1.0, 2.5):
        values = sound(round(seconds * 16000)).numpy()
        soundfile.write(tmp_path / "a.wav", values, 16000, subtype="FLOAT")
        read = encoder.preprocess(tmp_path / "a.wav", 0.0, None)
        assert read.shape == (16000,)
        kept = min(16000, len(values))
        assert np.array_equal(read.numpy()[:kept], values[:kept])
        assert not read[kept:].any()
        features = features_of(encoder, read)
        assert features.mask.all()
        raw = encoder(Media(torch.from_numpy(values)[None], torch.tensor([len(values)])))  # what a caller did not fit
        assert torch.equal(raw.frames, features.frames)
    together = encoder(Media(torch.stack([sound(16000, i) for i in range(3)]), torch.tensor([16000, 9000, 16000])))
    alone = features_of(encoder, sound(16000, 1)[:9000])
    assert torch.allclose(together.frames[1], alone.frames[0], atol=1e-5)


def test_compressed_clips_keep_samples_at_equal_distances() -> None:
    encoder = Cnn14(None, **PANNS, seconds=1.0, longer="compress")
    values = torch.arange(40000, dtype=torch.float32) / 40000
    read = encoder.preprocess(Waveform(values, 16000), 0.0, None)
    assert torch.equal(read, values[[int(2.5 * i) for i in range(16000)]])
    part = encoder.preprocess(Waveform(values, 16000), 0.0, 1.0)  # as a manifest says with "end"
    assert torch.equal(part, values[:16000])
    short = encoder.preprocess(Waveform(values[:8000], 16000), 0.0, None)
    assert torch.equal(short[:8000], values[:8000])
    assert not short[8000:].any()


def test_specaugment_and_dropout_only_while_it_is_trained() -> None:
    torch.manual_seed(0)
    encoder = Cnn14(None, rate=16000, mels=64, channels=(4, 8), classes=5, seconds=4.0)
    clip = sound(64000)
    encoder.train()
    first = features_of(encoder, clip)
    assert torch.equal(first.frames, features_of(encoder, clip).frames)
    encoder.tune().train()
    seen: list[Tensor] = []
    encoder.net.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    frames = encoder(Media(torch.stack([clip, clip]), torch.tensor([64000, 64000]))).frames
    assert frames.requires_grad
    (picture,) = seen  # (B 1 T M), after the mask
    hidden_times, hidden_bands = (picture == 0).all(3)[:, 0], (picture == 0).all(2)[:, 0]
    for row in range(2):
        assert 0 < hidden_times[row].sum() <= 2 * 64
        assert 0 < hidden_bands[row].sum() <= 2 * 8
    assert not torch.equal(hidden_times[0], hidden_times[1])  # each clip has stripes of its own
    encoder.freeze()
    assert not any(p.requires_grad for p in encoder.parameters())
    encoder.train()
    assert not encoder.net.training


def test_options_and_files_that_do_not_fit_are_refused(file: Path, tmp_path: Path) -> None:
    def refused(message: str, model: str | None = None, **options: Any) -> None:
        with pytest.raises(InputError, match=message):
            Cnn14(model if model is not None else str(file), **{**PANNS, **options})

    refused("rate: 44100 is none of 32000, 16000, 8000", rate=44100)
    refused("reading: 'mine' is none of panns, prefix-aac", reading="mine")
    refused("longer: 'loop' is none of cut, compress", longer="loop")
    refused("seconds: 0.0 is not above 0", seconds=0.0)
    refused("window of 1024 samples was expected; is rate another", rate=32000)
    refused("of PANNs' Cnn14 has the shape", classes=21)
    refused("'conv_block3.bn1.bias', which PANNs' Cnn14 does not have", channels=(4, 6))
    refused("no such file", str(tmp_path / "none.pth"))
    refused("expected hf://OWNER/NAME/FILE", "hf://owner/file")
    state = torch.load(file, weights_only=False)["model"]
    state["spectrogram_extractor.stft.conv_real.weight"] *= 2
    torch.save(state, tmp_path / "other.pth")
    refused("is not that of Hann windows", str(tmp_path / "other.pth"))


def test_other_rates(tmp_path: Path) -> None:
    encoder = Cnn14(str(tiny_encoders.save_panns(tmp_path / "32k.pth", 32000)), **{**PANNS, "rate": 32000})
    assert isinstance(encoder.net, Cnn14Net)
    assert features_of(encoder, sound(32000)).frames.shape[1] == 101 // 4
