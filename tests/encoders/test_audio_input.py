"""Input of the audio encoders: what is read, windows, masks and means, and no leak of padding."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmprefix.encoders.audio_input import (
    ReadWaveform,
    join_windows,
    length_mask,
    masked_mean,
    mel_power,
    split_windows,
    zero_padding,
)
from mmprefix.media.source import Waveform
from mmprefix.types import Media


def media(*clips: list[float], padding: float = 9.0) -> Media:
    """Clips of unlike lengths, padded with something that is no silence."""
    most = max(map(len, clips))
    values = torch.tensor([clip + [padding] * (most - len(clip)) for clip in clips])
    return Media(values, torch.tensor([len(clip) for clip in clips]))


def test_no_more_is_read_than_the_encoder_looks_at() -> None:
    sound = Waveform(np.linspace(-0.5, 0.5, 80_000, dtype=np.float32), 8000)
    whole, window = ReadWaveform(8000), ReadWaveform(8000, seconds=2.0)
    assert_close(whole(sound), torch.from_numpy(np.asarray(sound.values)))
    assert_close(window(sound, 1.0), whole(sound)[8000 : 8000 + 16_800])  # and a tenth of a second
    assert_close(window(sound, 1.0, 1.5), whole(sound)[8000:12_000])
    assert_close(window(sound, 9.5), whole(sound)[76_000:])
    assert pickle.loads(pickle.dumps(window)) == window  # a loader's worker gets it
    assert repr(window) != repr(whole)  # the feature store tells them apart


@pytest.mark.parametrize("padding", [9.0, float("nan")])
def test_padding_becomes_silence_and_short_clips_get_some(padding: float) -> None:
    values, lengths = zero_padding(media([1.0, 2.0, 3.0], [4.0], padding=padding), least=4)
    assert values.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert lengths.tolist() == [4, 4]
    values, lengths = zero_padding(Media(torch.ones(1, 2), torch.tensor([5])))  # no more than is there
    assert (values.tolist(), lengths.tolist()) == ([[1, 1]], [2])


@pytest.mark.parametrize("padding", [9.0, float("nan")])
def test_windows_of_each_clip_in_order(padding: float) -> None:
    batch = media([1.0, 2.0, 3.0, 4.0, 5.0], [6.0], [7.0, 8.0], padding=padding)
    windows = split_windows(batch, 2, join=True)
    assert windows.values.tolist() == [[1, 2], [3, 4], [5, 0], [6, 0], [7, 8]]
    assert windows.lengths.tolist() == [2, 2, 1, 1, 2]
    assert windows.owner.tolist() == [0, 0, 0, 1, 2]
    first = split_windows(batch, 2, join=False)
    assert (first.values.tolist(), first.owner.tolist()) == ([[1, 2], [6, 0], [7, 8]], [0, 1, 2])
    long = split_windows(media([1.0], [2.0, 3.0]), 4, join=True)
    assert (long.values.tolist(), long.lengths.tolist()) == ([[1, 0, 0, 0], [2, 3, 0, 0]], [1, 2])


def test_frames_of_windows_are_joined_by_clip() -> None:
    frames = torch.arange(12.0).view(4, 3, 1)
    joined, mask = join_windows(frames, torch.tensor([3, 1, 0, 2]), torch.tensor([0, 0, 1, 2]), 3)
    assert mask.tolist() == [[True] * 4, [False] * 4, [True, True, False, False]]
    assert joined[..., 0].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [9, 10, 0, 0]]


def test_joined_windows_are_the_clip() -> None:
    batch = media([1.0, 2.0, 3.0, 4.0, 5.0], [6.0], [7.0, 8.0])
    windows = split_windows(batch, 2, join=True)
    joined, mask = join_windows(windows.values[..., None], windows.lengths, windows.owner, 3)
    assert torch.equal(mask, length_mask(batch.lengths, 5))
    assert torch.equal(joined[..., 0][mask], batch.values[mask])


def test_the_mean_is_that_of_real_frames() -> None:
    frames = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(frames, mask).tolist() == [[2, 3], [0, 0]]


def hann_power(values: np.ndarray, size: int, hop: int) -> Tensor:
    """Power spectrum (K F) of centred windows by NumPy alone."""
    padded = np.pad(values, size // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    starts = range(0, len(padded) - size + 1, hop)
    columns = [np.abs(np.fft.rfft(window * padded[start : start + size])) ** 2 for start in starts]
    return torch.from_numpy(np.stack(columns, 1))


@pytest.mark.numeric
def test_the_spectrogram_is_that_of_numpy() -> None:
    values = np.random.default_rng(0).standard_normal((2, 400))
    filters = torch.rand(33, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    power = mel_power(torch.from_numpy(values), filters, 64, 16)
    assert power.shape == (2, 5, 400 // 16 + 1)
    for clip, own in zip(values, power, strict=True):
        assert_close(own, filters.T @ hann_power(clip, 64, 16), rtol=1e-9, atol=1e-9)
