"""Augmentation of sounds and pictures for small encoders that are trained on few: none is seen twice alike.

Sounds are mel power (B M T), because every change is as good there as in the waveform and far cheaper.
Randomness is torch's own: `torch.manual_seed` repeats it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform(low: float, high: float) -> float:
    """Draw one number between ``low`` and ``high``."""
    return low + (high - low) * torch.rand(()).item()


def whole(below: int) -> int:
    """Draw one whole number from 0 to ``below`` - 1."""
    return int(torch.randint(below, ()).item())


def vary_sound(power: Tensor, columns: int, *, stretch: float = 0.15, shift: float = 3.0, gain: float = 1.5) -> Tensor:
    """Vary one clip, mel power (M T) → (M columns): its tempo, pitch, start, loudness and noise.

    ``stretch`` is the largest change of log duration, ``shift`` of pitch in bands, ``gain`` the spread of log power.
    """
    power = _warp(power, math.exp(uniform(-stretch, stretch)), uniform(-shift, shift))
    power = power.roll(whole(power.shape[1]), 1)
    short = columns - power.shape[1]
    if short > 0:
        power = power.repeat(1, columns // power.shape[1] + 1) if whole(2) else F.pad(power, (0, short))
    start = whole(power.shape[1] - columns + 1)
    power = power[:, start : start + columns] * math.exp(gain * torch.randn(()).item())
    if whole(2):  # coloured noise, 10 to 40 dB below the clip
        colour = torch.rand(len(power), 1) * torch.empty_like(power).exponential_()
        power = power + power.mean() * 10 ** uniform(-4, -1) * colour
    return power


def _warp(power: Tensor, time: float, bands: float) -> Tensor:
    """Stretch ``power`` (M T) to ``time`` times its length and move it by ``bands``, in one interpolation."""
    mels, size = power.shape
    rows = ((torch.arange(mels) + bands).clamp(0, mels - 1) * 2 + 1) / mels - 1
    after = max(16, int(size * time))
    cells = (torch.arange(after) * 2 + 1) / after - 1
    grid = torch.stack([cells.expand(mels, -1), rows[:, None].expand(-1, after)], dim=2)[None]
    quiet = torch.log(power + 1e-8)[None, None]
    return F.grid_sample(quiet, grid, padding_mode="border", align_corners=False)[0, 0].exp()


def mix_sounds(power: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each clip (B M T) with another, and their targets (B C) in the same shares.

    Between-class learning (Tokozume et al. 2018, https://arxiv.org/abs/1711.10282): the share is one of loudness,
    so the other clip is first brought to the power of the one.
    """
    order, share = torch.randperm(len(power)), torch.rand(len(power))
    loud = power.mean((1, 2)).clamp(min=1e-6)
    weight = share**2 / (share**2 + (1 - share) ** 2)
    other = power[order] * (loud / loud[order] * (1 - weight))[:, None, None]
    share = share[:, None]
    return power * weight[:, None, None] + other, targets * share + targets[order] * (1 - share)


def hide_bands(bands: Tensor, most_bands: int = 8, most_time: int = 20) -> Tensor:
    """Set a stripe of bands and one of time to the mean, 0, in each of (B M T).

    SpecAugment, https://arxiv.org/abs/1904.08779.
    """
    hidden = torch.zeros(bands.shape, dtype=torch.bool)
    for clip in hidden:
        for axis, most in ((0, most_bands), (1, most_time)):
            size = min(whole(most + 1), clip.shape[axis])
            clip.narrow(axis, whole(clip.shape[axis] - size + 1), size).fill_(True)
    return bands.masked_fill(hidden, 0.0)


def vary_picture(pixels: Tensor, flip: bool = True, smallest: float = 0.5) -> Tensor:
    """Crop pixels (3 Y X) to at least ``smallest`` of each side, mirror or not, relight, and resize to the old size."""
    height, width = pixels.shape[1:]
    share = uniform(smallest, 1.0)
    rows, columns = max(1, int(height * share)), max(1, int(width * min(1.0, share * uniform(0.85, 1.15))))
    top, left = whole(height - rows + 1), whole(width - columns + 1)
    part = pixels[:, top : top + rows, left : left + columns]
    if part.shape != pixels.shape:
        part = F.interpolate(part[None], (height, width), mode="bilinear", align_corners=False)[0]
    if flip and whole(2):
        part = part.flip(2)
    mean = part.mean((1, 2), keepdim=True)
    return (part - mean) * uniform(0.7, 1.3) + mean * uniform(0.8, 1.2) + 0.05 * torch.randn(3, 1, 1)


def mix_pictures(pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Blend each picture (B 3 Y X) with another, and its targets likewise; mixup, https://arxiv.org/abs/1710.09412."""
    order, share = torch.randperm(len(pixels)), torch.rand(len(pixels))
    blend = share[:, None, None, None]
    share = share[:, None]
    return pixels * blend + pixels[order] * (1 - blend), targets * share + targets[order] * (1 - share)
