"""Whisper's windows of log-mel, filled in training with one clip or several, no window twice alike.

Sounds are mel power (M T): every change is as good there as in the waveform and far cheaper. Randomness is
torch's own: `torch.manual_seed` repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor

from mmprefix.encoders.audio_input import mel_power
from mmprefix.recipes.pretrain.augment import hide_bands, uniform, whole


@dataclass(frozen=True)
class SpeechClip:
    """Mel power (M T) and its transcript."""

    power: Tensor
    text: str


@dataclass(frozen=True)
class Filling:
    """Settings of the windows; ``speed`` and ``tract`` are the largest changes of a logarithm."""

    columns: int  # of a window
    clips: int = 3  # at most
    speed: float = 0.15
    tract: float = 0.12  # bands are stretched or squeezed, as by another length of the vocal tract
    gain: float = 0.5
    noisy: float = 0.4  # share of windows with noise, 10 to 40 dB below the speech
    silent: float = 0.05  # share of windows in which nobody speaks
    hidden: float = 0.06  # the longest stripe of time that is hidden, as a share of the window
    full: float = 0.5  # share of batches in which windows are filled up; else they end soon after the longest

    def eased(self, share: float) -> Filling:
        """Make windows easier: ``share`` of all changes, and fewer clips."""
        return replace(
            self,
            clips=1 + int((self.clips - 1) * share),
            speed=self.speed * share,
            tract=self.tract * share,
            noisy=self.noisy * share,
            hidden=self.hidden * share,
            full=self.full * share,
        )


def power(wave: Tensor, extractor: WhisperFeatureExtractor) -> Tensor:
    """Compute mel power (M T) of samples (S,), one column for each hop."""
    filters = torch.from_numpy(extractor.mel_filters).float()
    return mel_power(wave[None], filters, extractor.n_fft, extractor.hop_length)[0, :, :-1].contiguous()


def level(window: Tensor) -> Tensor:
    """Convert mel power (M F) to the log-mel of WhisperFeatureExtractor: the window's loudest 80 dB, about -1 to 1."""
    bands = window.clamp(min=1e-10).log10()
    return (bands.maximum(bands.max() - 8) + 4) / 4


def fill(clips: Sequence[SpeechClip], plan: Filling, size: int) -> tuple[Tensor, list[list[str]]]:
    """Log-mel of ``size`` windows (B M F) and the texts in each, in order; no text if nobody speaks.

    ``clips`` are sorted by length: a batch is filled with clips of about the same length.
    """
    index, reach = whole(len(clips)), max(size, len(clips) // 8)
    near = clips[max(0, index - reach) : index + reach]
    chosen = [([], []) if torch.rand(()).item() < plan.silent else choose(near, plan) for _ in range(size)]
    columns = plan.columns
    if torch.rand(()).item() >= plan.full:
        longest = max(sum(sound.shape[1] for sound in sounds) for sounds, _ in chosen)
        columns = min(columns, 2 * round(longest / 2 + 5 + whole(10)))
    windows = [render(sounds, columns, clips, plan) for sounds, _ in chosen]
    return torch.stack(windows), [texts for _, texts in chosen]


def render(sounds: Sequence[Tensor], columns: int, clips: Sequence[SpeechClip], plan: Filling) -> Tensor:
    """Log-mel of a window (M ``columns``) with ``sounds`` in it, some noise of ``clips``, and stripes hidden."""
    if sounds:
        window = lay(sounds, columns)
        if torch.rand(()).item() < plan.noisy:
            ground = noise(clips, columns)
            window += ground * (window.mean() / ground.mean().clamp(min=1e-12) * 10 ** uniform(-4, -1))
    else:
        window = noise(clips, columns) * 10 ** uniform(-3, 3) * min(1, whole(10))
    return hide(level(window), round(plan.hidden * columns), round(200 * plan.hidden))


def choose(clips: Sequence[SpeechClip], plan: Filling) -> tuple[list[Tensor], list[str]]:
    """Draw random clips, each varied, that fit into one window together; at least one."""
    sounds: list[Tensor] = []
    texts: list[str] = []
    room = plan.columns
    for _ in range(1 + whole(plan.clips)):
        clip = clips[whole(len(clips))]
        sound = vary(clip.power, plan)
        if sound.shape[1] > room and sounds:
            break
        sounds.append(sound)
        texts.append(clip.text)
        room -= sound.shape[1]
    return sounds, texts


def vary(sound: Tensor, plan: Filling) -> Tensor:
    """Vary one clip, mel power (M T) → (M T'), no longer than a window.

    Its tempo, the length of the vocal tract and the loudness change.
    """
    bands, before = sound.shape
    columns = min(plan.columns, max(4, round(before * math.exp(uniform(-plan.speed, plan.speed)))))
    height = round(bands * math.exp(uniform(-plan.tract, plan.tract)))
    quiet = torch.log(sound + 1e-10)[None, None]
    drawn = F.interpolate(quiet, (height, columns), mode="bilinear", align_corners=False)[0, :, :bands]
    drawn = F.pad(drawn, (0, 0, 0, max(0, bands - height)), mode="replicate")[0]
    return drawn.exp() * math.exp(plan.gain * torch.randn(()).item())


def lay(sounds: Sequence[Tensor], columns: int) -> Tensor:
    """Lay ``sounds``, mel power (M T) each, into one window (M F) of silence, with pauses of random length.

    Every other window begins with its first sound, as an encoder hears a clip.
    """
    room = columns - sum(sound.shape[1] for sound in sounds)
    parts: list[Tensor] = []
    pause = whole(2) * whole(room + 1)
    for sound in sounds:
        parts += [sound.new_zeros(len(sound), pause), sound]
        room -= pause
        pause = whole(1 + min(room, columns // 8))
    laid = torch.cat(parts, 1)
    return F.pad(laid, (0, columns - laid.shape[1]))


def noise(clips: Sequence[SpeechClip], columns: int) -> Tensor:
    """Draw noise (M columns) with the spectrum of the quietest tenth of a random clip, or with any spectrum."""
    sound = clips[whole(len(clips))].power
    quiet = sound.sum(0).argsort()[: max(1, sound.shape[1] // 10)]
    colour = sound[:, quiet].mean(1, keepdim=True) if whole(2) else torch.rand(len(sound), 1)
    return colour * torch.empty(len(sound), columns).exponential_()


def hide(window: Tensor, columns: int, bands: int) -> Tensor:
    """Set two stripes of at most ``bands`` and two of at most ``columns`` to the mean of the window (M F)."""
    mean = window.mean()
    for _ in range(2):
        window = hide_bands((window - mean)[None], bands, columns)[0] + mean
    return window
