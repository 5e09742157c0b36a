"""Input of the audio encoders: reading at one rate, padding and windows, with no leak between clips of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmprefix.media.audio import read_waveform
from mmprefix.media.source import Source
from mmprefix.types import Media


@dataclass(frozen=True)
class ReadWaveform:
    """Preprocessing of an audio encoder: one clip, mono, at ``rate`` Hz.

    ``seconds`` is the length that the encoder reads, None for the whole clip; the rest is not decoded. A tenth of a
    second more is read, so that effects of the cut lie outside.
    """

    rate: int
    seconds: float | None = None

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """``source`` between ``start`` and ``end`` seconds → samples (S,), float32."""
        if self.seconds is not None:
            limit = start + self.seconds + 0.1
            end = limit if end is None else min(end, limit)
        return read_waveform(source, self.rate, start, end)


@dataclass(frozen=True)
class Windows:
    """N windows of W samples (N W), number of samples of sound in each (N), and the clip that each is cut from (N)."""

    values: Tensor
    lengths: Tensor
    owner: Tensor


def length_mask(counts: Tensor, size: int) -> Tensor:
    """Mask (B size), True for the first ``counts`` (B) positions of each row."""
    return torch.arange(size, device=counts.device) < counts[:, None]


def zero_padding(media: Media, least: int = 1) -> tuple[Tensor, Tensor]:
    """Samples (B S) with zeros past each length, and the lengths (B); no clip shorter than ``least``.

    Whatever a batch was padded with becomes silence, and a clip too short for one frame is padded with silence to one.
    """
    lengths = media.lengths.clamp(max=media.values.shape[1])
    values = media.values.masked_fill(~length_mask(lengths, media.values.shape[1]), 0.0)
    return pad(values, (0, max(0, least - values.shape[1]))), lengths.clamp(min=least)


def split_windows(media: Media, size: int, join: bool) -> Windows:
    """Clips in windows of ``size`` samples, the last one padded with silence; without ``join`` only the first."""
    values, lengths = zero_padding(media)
    number = lengths.sub(1).div(size, rounding_mode="floor").add(1) if join else torch.ones_like(lengths)
    most = int(number.max())
    values = pad(values, (0, max(0, most * size - values.shape[1])))[:, : most * size]
    keep = length_mask(number, most)  # (B, most)
    sound = (lengths[:, None] - torch.arange(most, device=lengths.device) * size).clamp(0, size)
    return Windows(values.view(len(values), most, size)[keep], sound[keep], keep.nonzero()[:, 0])


def join_windows(frames: Tensor, counts: Tensor, owner: Tensor, clips: int) -> tuple[Tensor, Tensor]:
    """First ``counts`` (N) frames of each window (N F D), joined by clip → frames (B T D), mask (B T)."""
    total = torch.zeros(clips, dtype=counts.dtype, device=counts.device).index_add(0, owner, counts)
    mask = length_mask(total, int(total.max()))  # (B T)
    out = frames.new_zeros(*mask.shape, frames.shape[2])
    out[mask] = frames[length_mask(counts, frames.shape[1])]
    return out, mask


def masked_mean(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean (B D) of the frames (B T D) where ``mask`` (B T) is True."""
    weights = mask.unsqueeze(2).to(frames.dtype)
    return (frames * weights).sum(1) / weights.sum(1).clamp(min=1)


def mel_power(values: Tensor, filters: Tensor, size: int, hop: int, *, center: bool = True) -> Tensor:
    """Power in mel bands (N M F): centred Hann windows of ``size`` samples every ``hop``, summed by ``filters`` (K M).

    Computed in the type of ``values`` (N W); F = W // hop + 1. Without ``center`` the first window begins with the
    first sample, and F = (W - size) // hop + 1.
    """
    window = torch.hann_window(size, dtype=values.dtype, device=values.device)
    spectrum = torch.stft(values, size, hop, window=window, center=center, return_complex=True)  # (N K F)
    return filters.to(values).T @ spectrum.abs().square()
