"""Small convolutional sound encoder: padding has no influence, folders load or are refused, nothing is trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmprefix.encoders import cnn
from mmprefix.errors import InputError
from mmprefix.media.source import Waveform
from mmprefix.types import Media

SIZES = cnn.MelNetSizes(rate=16000, hop=320, mels=32, high=7000.0, channels=(4, 8, 12), summary=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = cnn.MelNet(SIZES)
    net.train()
    for _ in range(3):  # batch statistics away from their start, as after training
        power, columns = net.spectrogram(torch.randn(4, 8000), torch.full((4,), 8000))
        net(power, columns)
    path = tmp_path_factory.mktemp("cnn")
    cnn.save(net, path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> cnn.Cnn:
    return cnn.Cnn(str(folder))


def _media(clips: list[Tensor], extra: int = 0) -> Media:
    lengths = torch.tensor([len(clip) for clip in clips])
    values = torch.zeros(len(clips), int(lengths.max()) + extra)
    for row, clip in zip(values, clips, strict=True):
        row[: len(clip)] = clip
    return Media(values, lengths)


def test_a_batch_equals_its_clips_one_at_a_time(encoder: cnn.Cnn):
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(size, generator=generator) for size in (16000, 12345, 9000, 2561, 2559, 400, 1)]
    together = encoder(_media(clips, extra=777))
    assert together.frames.shape[2] == encoder.dim == 12
    assert together.pooled.shape == (7, encoder.pooled_dim) == (7, 10)
    for row, clip in enumerate(clips):
        alone = encoder(_media([clip]))
        count = alone.frames.shape[1]
        assert alone.mask.all()
        assert count >= 1
        assert together.mask[row].sum() == count
        torch.testing.assert_close(together.frames[row, :count], alone.frames[0], atol=1e-5, rtol=1e-5)
        assert not together.frames[row, count:].any()
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)


def test_frames_cover_their_time_span(encoder: cnn.Cnn):
    """A click in silence changes only the frames near it: 2 s at 50 columns a second and stride 8."""
    quiet = torch.zeros(32000)
    click = quiet.clone()
    click[24000:24050] = 0.9
    moved = (encoder(_media([click])).frames - encoder(_media([quiet])).frames).abs().sum(2)[0]
    assert len(moved) == (32000 // 320 + 1) // 8
    assert moved[24000 // 320 // 8] > 0
    assert not moved[:5].any()


def test_loudness_changes_the_features_and_silence_is_finite(encoder: cnn.Cnn):
    clip = torch.randn(8000, generator=torch.Generator().manual_seed(2)) * 0.01
    assert not torch.allclose(encoder(_media([clip])).pooled, encoder(_media([clip * 50])).pooled)
    assert encoder(_media([torch.zeros(8000)])).pooled.isfinite().all()


def test_it_resamples_and_cuts(encoder: cnn.Cnn):
    tone = np.sin(np.arange(44100) * 0.05).astype(np.float32)
    assert encoder.preprocess(Waveform(tone, 44100), 0.0, None).shape == (16000,)
    assert encoder.preprocess(Waveform(tone, 44100), 0.25, 0.75).shape == (8000,)


def test_it_is_frozen_and_has_an_identity(encoder: cnn.Cnn, folder: Path):
    assert not encoder.train().net.norm.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.identity == cnn.Cnn(str(folder)).identity
    assert len(encoder.identity.sha256) == 64
    assert encoder.init_args == {"model": str(folder), "revision": None}


def test_the_front_end_is_that_of_panns():
    """Mel power against its definition (Hann frames, FFT, Slaney bands), without torchaudio."""
    transformers = pytest.importorskip("transformers.audio_utils")
    sizes = cnn.MelNetSizes()
    wave = torch.randn(sizes.rate, generator=torch.Generator().manual_seed(3))
    ours, columns = cnn.MelNet(sizes).spectrogram(wave[None], torch.tensor([sizes.rate]))
    bands = transformers.mel_filter_bank(
        1 + sizes.window // 2, sizes.mels, sizes.low, sizes.high, sizes.rate, norm="slaney", mel_scale="slaney"
    )
    theirs = transformers.spectrogram(
        wave.numpy(), transformers.window_function(sizes.window, "hann"), sizes.window, sizes.hop,
        power=2.0, pad_mode="constant", mel_filters=bands,
    )  # fmt: skip
    assert columns.item() == theirs.shape[1]
    np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=1e-3, atol=1e-3)


def test_a_folder_that_does_not_fit_is_refused_by_name(folder: Path, tmp_path: Path):
    (tmp_path / cnn.WEIGHTS).write_bytes((folder / cnn.WEIGHTS).read_bytes())
    with pytest.raises(InputError, match=r"config\.json"):
        cnn.Cnn(str(tmp_path))
    config = (folder / cnn.CONFIG).read_text()
    (tmp_path / cnn.CONFIG).write_text(config.replace('"mels"', '"bands"'))
    with pytest.raises(InputError, match="'bands' is no size"):
        cnn.Cnn(str(tmp_path))
    (tmp_path / cnn.CONFIG).write_text(config.replace('"summary": 10', '"summary": 11'))
    with pytest.raises(InputError, match=r"summary\.weight"):
        cnn.Cnn(str(tmp_path))
    (tmp_path / cnn.CONFIG).write_text(config)
    (tmp_path / cnn.WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(InputError, match=tmp_path.name):
        cnn.Cnn(str(tmp_path))
