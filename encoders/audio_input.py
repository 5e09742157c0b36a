"""What the encoders of sound share: reading at one rate, and clips of different lengths without leaks between them."""

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
    """The preprocessing of an encoder of sound: one clip, mono, at ``rate`` Hz.

    ``seconds`` is what the encoder hears when that is not the whole clip: the rest is not decoded. A tenth of a second
    more is read, so that the place where reading stops lies outside.
    """

    rate: int
    seconds: float | None = None

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """``source`` between ``start`` and ``end`` seconds → samples (S,), float32."""
        if self.seconds is not None:
            heard = start + self.seconds + 0.1
            end = heard if end is None else min(end, heard)
        return read_waveform(source, self.rate, start, end)


@dataclass(frozen=True)
class Windows:
    """N pieces of W samples (N W), how many samples of each are sound (N), and the clip each is cut from (N)."""

    values: Tensor
    lengths: Tensor
    owner: Tensor


def length_mask(counts: Tensor, size: int) -> Tensor:
    """Mask (B size) that is True for the first ``counts`` (B) places of each row."""
    return torch.arange(size, device=counts.device) < counts[:, None]


def zero_padding(media: Media, least: int = 1) -> tuple[Tensor, Tensor]:
    """Samples (B S) with nothing but zeros past each length, and the lengths (B); no clip shorter than ``least``.

    Whatever a batch was padded with, an encoder hears silence there; and a clip that is too short for one frame
    gains silence until it fills one.
    """
    lengths = media.lengths.clamp(max=media.values.shape[1])
    values = media.values.masked_fill(~length_mask(lengths, media.values.shape[1]), 0.0)
    return pad(values, (0, max(0, least - values.shape[1]))), lengths.clamp(min=least)


def windows(media: Media, size: int, join: bool) -> Windows:
    """Each clip in pieces of ``size`` samples, the last one filled with silence; only its first without ``join``."""
    values, lengths = zero_padding(media)
    number = lengths.sub(1).div(size, rounding_mode="floor").add(1) if join else torch.ones_like(lengths)
    most = int(number.max())
    values = pad(values, (0, max(0, most * size - values.shape[1])))[:, : most * size]
    keep = length_mask(number, most)  # (B, most)
    held = (lengths[:, None] - torch.arange(most, device=lengths.device) * size).clamp(0, size)
    return Windows(values.view(len(values), most, size)[keep], held[keep], keep.nonzero()[:, 0])


def join_windows(frames: Tensor, counts: Tensor, owner: Tensor, clips: int) -> tuple[Tensor, Tensor]:
    """The first ``counts`` (N) frames of each window (N F D), clip after clip → frames (B T D), mask (B T)."""
    total = torch.zeros(clips, dtype=counts.dtype, device=counts.device).index_add(0, owner, counts)
    mask = length_mask(total, int(total.max()))  # (B T)
    out = frames.new_zeros(*mask.shape, frames.shape[2])
    out[mask] = frames[length_mask(counts, frames.shape[1])]
    return out, mask


def mean(frames: Tensor, mask: Tensor) -> Tensor:
    """The mean (B D) of the frames (B T D) where ``mask`` (B T) is True."""
    weights = mask.unsqueeze(2).to(frames.dtype)
    return (frames * weights).sum(1) / weights.sum(1).clamp(min=1)


def mel_power(values: Tensor, filters: Tensor, size: int, hop: int) -> Tensor:
    """Power in mel bands (N M F): centred Hann windows of ``size`` samples every ``hop``, summed by ``filters`` (K M).

    Computed in the type of ``values`` (N W); F = W // hop + 1.
    """
    window = torch.hann_window(size, dtype=values.dtype, device=values.device)
    spectrum = torch.stft(values, size, hop, window=window, return_complex=True)  # (N K F)
    return filters.to(values).T @ spectrum.abs().square()
