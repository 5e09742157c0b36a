"""Small convolutional network over log-mel bands, for use without a large encoder.

Its plan is that of PANNs (Kong et al. 2020, https://arxiv.org/abs/1912.10211): pairs of 3×3 convolutions between
poolings, mean over bands last, maximum plus mean over time for the summary; only smaller, and exact under padding.
`recipes/pretrain/encoder.py` trains it. A folder holds `config.json` (the fields of ``MelNetSizes``) and
`model.safetensors`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from mmprefix.encoders.audio_input import ReadWaveform, length_mask, zero_padding
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.types import Features, Media
from mmprefix.weights import source as sources

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class MelNetSizes:
    """Front end (``rate``, ``low`` and ``high`` in Hz, ``window`` and ``hop`` in samples) and widths of the network.

    Each entry of ``channels`` is one block, which halves time and bands; ``summary`` is the width G of the summary.
    """

    rate: int = 32000
    window: int = 1024
    hop: int = 640
    mels: int = 64
    low: float = 50.0
    high: float = 14000.0
    floor: float = 1e-4
    channels: tuple[int, ...] = (32, 64, 128, 256)
    summary: int = 256

    @property
    def stride(self) -> int:
        """Spectrogram columns for each frame that comes out."""
        return 2 ** len(self.channels)


class MelNetBlock(nn.Module):
    """Two 3×3 convolutions, each with batch normalisation and ReLU, then the mean over 2×2."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Feature map (B C T M) and the mask (B 1 T 1) of its columns → (B C' T//2 M//2)."""
        # Columns past a clip's end stay zero, like the convolution's own padding: so padding changes nothing.
        x = torch.relu(self.norm1(self.conv1(x))) * mask
        x = torch.relu(self.norm2(self.conv2(x))) * mask
        return nn.functional.avg_pool2d(x, 2)


class MelNet(nn.Module):
    """Network of ``Cnn``, used by the frozen encoder and by the program that trains it."""

    def __init__(self, sizes: MelNetSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.mel = MelSpectrogram(
            sizes.rate, sizes.window, hop_length=sizes.hop, f_min=sizes.low, f_max=sizes.high, n_mels=sizes.mels,
            pad_mode="constant", norm="slaney", mel_scale="slaney",
        )  # fmt: skip
        self.norm = nn.BatchNorm1d(sizes.mels)  # each band by its own mean and spread, as PANNs' bn0
        widths = [1, *sizes.channels]
        self.blocks = nn.ModuleList(MelNetBlock(a, b) for a, b in pairwise(widths))
        self.summary = nn.Linear(widths[-1], sizes.summary)

    def spectrogram(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B S) of ``lengths`` (B) → mel power (B M T) and the number of its columns (B)."""
        least = self.sizes.hop * (self.sizes.stride - 1)  # samples of one frame
        values, lengths = zero_padding(Media(values, lengths), least)
        return self.mel(values), lengths // self.sizes.hop + 1

    def forward(self, power: Tensor, columns: Tensor) -> Features:
        """Mel power (B M T), of which ``columns`` (B) are real → frames (B T' D), mask (B T'), summary (B G)."""
        return self.read(self.norm(torch.log(power + self.sizes.floor)), columns)

    def read(self, bands: Tensor, columns: Tensor) -> Features:
        """Run ``forward`` from normalised log power (B M T), of which training masks bands and times first."""
        x = bands.transpose(1, 2)[:, None]
        mask = length_mask(columns, x.shape[2])
        x = x * mask[:, None, :, None]
        for block in self.blocks:
            x = block(x, mask[:, None, :, None].to(x.dtype))
            columns = columns // 2
            mask = length_mask(columns, x.shape[2])
            x = x * mask[:, None, :, None]
        frames = x.mean(3).transpose(1, 2)
        mean = frames.sum(1) / columns[:, None]
        return Features(frames, mask, torch.relu(self.summary(mean + frames.amax(1))))  # after ReLU, zeros lose amax


def save(net: MelNet, folder: Path) -> None:
    """Write ``net`` as the folder that ``Cnn`` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(asdict(net.sizes), indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / WEIGHTS)


def load(folder: Path) -> MelNet:
    """Load the network in ``folder``; InputError if configuration or weights are missing, or do not agree."""
    config = sources.read_json(folder / CONFIG)
    unknown = sorted(set(config) - {field.name for field in fields(MelNetSizes)})
    if unknown:
        raise InputError(f"{folder / CONFIG}: {unknown[0]!r} is no size of this encoder")
    try:
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        sizes = MelNetSizes(**options)
        net = MelNet(sizes)
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: {' '.join(str(error).split())}") from error
    return net


class Cnn(Encoder):
    """Frozen ``MelNet``: frames over time (B T D) and a summary (B G).

    Args:
        model: a folder with its configuration and weights, ``mmprefix:NAME``, or a hub name.
        revision: the hub's branch, tag or commit.
    """

    input_kind = "audio"

    def __init__(self, model: str, revision: str | None = None) -> None:
        super().__init__()
        path = sources.resolve_folder(model, revision)
        self.identity = sources.provenance_of(model, path)
        self.net = load(path)
        self.dim = self.net.sizes.channels[-1]
        self.pooled_dim = self.net.sizes.summary
        self.preprocess = ReadWaveform(self.net.sizes.rate)
        self.freeze()

    def encode(self, media: Media) -> Features:
        """Samples (B S) → frames (B T D), mask (B T), summary (B G)."""
        return self.net(*self.net.spectrogram(media.values, media.lengths))
