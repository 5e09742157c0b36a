"""Cnn14 of PANNs: a network of fourteen layers over log-mel bands, trained on the 527 classes of AudioSet.

PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern Recognition (Kong et al. 2020),
https://arxiv.org/abs/1912.10211; weights: https://zenodo.org/record/3987831. Its features are read in two ways: as in
PANNs, and as in Prefix-AAC (Kim et al. 2023, https://arxiv.org/abs/2303.17489).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmprefix.encoders.audio_input import length_mask, zero_padding
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError, require_one_of
from mmprefix.media.audio import read_waveform
from mmprefix.media.source import Source
from mmprefix.types import Features, Media
from mmprefix.weights import dry_run, untrusted
from mmprefix.weights import source as sources

_FRONT_ENDS = {  # rate: window and hop in samples, lowest and highest frequency in Hz, as the weights were published
    32000: (1024, 320, 50.0, 14000.0),
    16000: (512, 160, 50.0, 8000.0),
    8000: (256, 80, 50.0, 4000.0),
}


@dataclass(frozen=True)
class ReadClip:
    """Preprocessing: mono at ``rate`` Hz; with ``seconds`` every clip is made that long.

    Short clips are padded with silence. Of long ones ``longer`` keeps the start ("cut"), or drops samples at even
    distances ("compress", as Prefix-AAC does to Clotho beside AudioCaps: faster and higher, nothing left out).
    """

    rate: int
    seconds: float | None
    longer: str

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """``source`` between ``start`` and ``end`` seconds → samples (S,), float32."""
        if self.seconds is None:
            return read_waveform(source, self.rate, start, end)
        size = round(self.seconds * self.rate)
        if self.longer == "cut":  # a tenth of a second more is read, so that effects of the cut lie outside
            limit = start + self.seconds + 0.1
            end = limit if end is None else min(end, limit)
        values = read_waveform(source, self.rate, start, end)
        if self.longer == "compress" and len(values) > size:
            values = values[(torch.arange(size, dtype=torch.float64) * (len(values) / size)).long()]
        return fit_length(values[None], size)[0]


def fit_length(values: Tensor, size: int) -> Tensor:
    """Samples (B S) cut, or padded with silence, to (B ``size``)."""
    return F.pad(values[:, :size], (0, max(0, size - values.shape[1])))


class Cnn14Block(nn.Module):
    """Two 3×3 convolutions, each with batch normalisation and ReLU, then the mean over ``pool`` × ``pool``."""

    def __init__(self, before: int, after: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """(B C T M) → (B C' T//pool M//pool)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.dropout(F.avg_pool2d(x, self.pool), 0.2, self.training)


def mel_filters(bins: int, mels: int, band: tuple[float, float], rate: int) -> Tensor:
    """Slaney's mel filters (K M); without values where modules are built for their sizes, on the meta device."""
    if torch.empty(0).is_meta:  # torchaudio looks at values
        return torch.empty(bins, mels)
    return torchaudio.functional.melscale_fbanks(bins, *band, mels, rate, norm="slaney", mel_scale="slaney")


class Cnn14Net(nn.Module):
    """Network of ``Cnn14``; parameters have the names of the published checkpoints, but for the blocks' numbers.

    In training mode it masks bands and times of its input (SpecAugment, https://arxiv.org/abs/1904.08779: two stripes
    of at most 64 columns and two of at most 8 bands) and applies dropout, as the original does.
    """

    def __init__(
        self, *, rate: int, window: int, hop: int, low: float, high: float, mels: int, channels: list[int], classes: int
    ) -> None:
        super().__init__()
        self.hop = hop
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.window: Tensor
        self.register_buffer("mel", mel_filters(window // 2 + 1, mels, (low, high), rate))  # (K M)
        self.mel: Tensor
        self.bn0 = nn.BatchNorm2d(mels)
        widths = [1, *channels]
        pools = [2] * (len(channels) - 1) + [1]
        self.blocks = nn.ModuleList(
            Cnn14Block(a, b, pool) for (a, b), pool in zip(pairwise(widths), pools, strict=True)
        )
        self.fc1 = nn.Linear(channels[-1], channels[-1])
        self.fc_audioset = nn.Linear(channels[-1], classes)
        self.hide_times = torchaudio.transforms.TimeMasking(64, iid_masks=True)
        self.hide_bands = torchaudio.transforms.FrequencyMasking(8, iid_masks=True)

    def log_mel(self, values: Tensor) -> Tensor:
        """Samples (B S) → level of each band in decibels (B T M), at least -100."""
        size = len(self.window)
        power = torchaudio.functional.spectrogram(values, 0, self.window, size, self.hop, size, 2.0, normalized=False)
        power = power.transpose(1, 2) @ self.mel
        return 10.0 * power.clamp(min=1e-10).log10()

    def forward(self, values: Tensor) -> Tensor:
        """Samples (B S) → feature map of the last block (B C T M), a frame for every 32 columns and bands."""
        x = self.bn0(self.log_mel(values).transpose(1, 2)[..., None])  # (B M T 1): each band by its own statistics
        x = x.permute(0, 3, 1, 2)  # (B 1 M T)
        if self.training:
            for hide in (self.hide_times, self.hide_times, self.hide_bands, self.hide_bands):
                x = hide(x)
        x = x.transpose(2, 3)  # (B 1 T M)
        for block in self.blocks:
            x = block(x)
        return x

    def embedding(self, feature_map: Tensor) -> Tensor:
        """Feature map (B C T M) → embedding (B C): mean over bands, maximum plus mean over time, one ReLU layer."""
        x = feature_map.mean(3)
        x = F.dropout(x.amax(2) + x.mean(2), 0.5, self.training)
        return F.relu(self.fc1(x))


class Cnn14(Encoder):
    """Frozen Cnn14 of PANNs.

    Args:
        model: a file of weights as published (``Cnn14_16k_mAP=0.438.pth``), ``hf://OWNER/NAME/FILE``, or None for
            random ones (to be trained, or filled with those of a saved model). The mel filters in the file are used.
        rate: 32000, 16000 or 8000 Hz, that of the weights.
        reading: "panns": frames are the feature map averaged over bands (B T 2048), the summary is the embedding
            (B 2048); "prefix-aac": frames are the whole map (B T 4096; channel first, then band), the summary is the
            probabilities of the classes (B 527), and the hop is 320 samples at any ``rate``.
        seconds: length that every clip is cut or padded to; None: each is read whole.
        longer: with ``seconds``, keep the start of a longer clip ("cut"), or all of it, faster ("compress").
        hop: samples between columns, by default those of ``reading`` and ``rate``.
        mels: mel bands of the spectrogram, for weights of other sizes.
        channels: channels of the blocks, for weights of other sizes.
        classes: classes that the network tells apart, for weights of other sizes.
    """

    input_kind = "audio"
    can_start_empty = True

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        model: str | None,
        *,
        rate: int = 32000,
        reading: Literal["panns", "prefix-aac"] = "panns",
        seconds: float | None = None,
        longer: Literal["cut", "compress"] = "cut",
        hop: int | None = None,
        mels: int = 64,
        channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048),
        classes: int = 527,
    ) -> None:
        super().__init__()
        require_one_of("reading", reading, ("panns", "prefix-aac"))
        require_one_of("longer", longer, ("cut", "compress"))
        if rate not in _FRONT_ENDS:
            raise InputError(f"rate: {rate} is none of {', '.join(map(str, _FRONT_ENDS))}")
        if seconds is not None and seconds <= 0:
            raise InputError(f"seconds: {seconds} is not above 0")
        window, published, low, high = _FRONT_ENDS[rate]
        step = hop or (320 if reading == "prefix-aac" else published)
        self.reading, self.least = reading, max(step * (2 ** (len(channels) - 1) - 1), window // 2 + 1)
        self.size = None if seconds is None else round(seconds * rate)
        self.net = Cnn14Net(
            rate=rate, window=window, hop=step, low=low, high=high, mels=mels, channels=list(channels), classes=classes
        )
        self.identity = sources.Provenance("random", None, "")
        if model is not None and not dry_run.sizes_only():
            file = untrusted.fetch_file(model)
            self.identity = sources.Provenance(model, sources.revision_of(file.parent), sources.fingerprint([file]))
            fill(self.net, untrusted.read_tensors(file), str(file))
        bands = mels // 2 ** (len(channels) - 1)
        if not bands:
            raise InputError(f"mels: {mels} bands leave nothing after {len(channels)} blocks")
        whole = reading == "prefix-aac"
        self.dim = channels[-1] * bands if whole else channels[-1]
        self.pooled_dim = classes if whole else channels[-1]
        self.preprocess = ReadClip(rate, seconds, longer)
        self.freeze()

    def encode(self, media: Media) -> Features:
        """Samples (B S) → frames (B T D), mask (B T), summary (B G)."""
        if self.size is not None:
            values, _ = zero_padding(media, self.least)
            frames, summary = self._read(fit_length(values, max(self.size, self.least)))
            return Features(frames, torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device), summary)
        values, lengths = zero_padding(media, self.least)
        frames, summaries = [Tensor()] * len(values), [Tensor()] * len(values)
        for length in lengths.unique().tolist():  # padding would change the features: one length at a time
            rows = (lengths == length).nonzero()[:, 0].tolist()
            for row, frame, summary in zip(rows, *self._read(values[rows, :length]), strict=True):
                frames[row], summaries[row] = frame, summary
        counts = torch.tensor([len(row) for row in frames], device=values.device)
        padded = pad_sequence(frames, batch_first=True)
        return Features(padded, length_mask(counts, padded.shape[1]), torch.stack(summaries))

    def _read(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (B S), all sound → frames (B T D) and summaries (B G)."""
        feature_map = self.net(values)  # (B C T M)
        if self.reading == "panns":
            return feature_map.mean(3).transpose(1, 2), self.net.embedding(feature_map)
        frames = feature_map.permute(0, 2, 1, 3).flatten(2)  # (B T C*M)
        if feature_map.shape[2] == 46:  # 30 seconds at 16 kHz: the published code shortens these for the summary alone
            feature_map = F.max_pool2d(feature_map, (3, 1))
        return frames, torch.sigmoid(self.net.fc_audioset(self.net.embedding(feature_map)))


def published_name(name: str) -> str:
    """Name of the tensor ``name`` of ``Cnn14Net`` in published checkpoints."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block:
        return f"conv_block{int(block[1]) + 1}.{block[2]}"
    return "logmel_extractor.melW" if name == "mel" else name


def tensors_of(net: Cnn14Net) -> dict[str, Tensor]:
    """Tensors of ``net`` by their names in published checkpoints."""
    return {published_name(name): value for name, value in net.state_dict().items()}


def fill(net: Cnn14Net, tensors: dict[str, Tensor], file: str) -> None:
    """Copy a published checkpoint's ``tensors`` into ``net``.

    Raises InputError that names the first tensor that is missing, unknown or of another shape, and for a spectrum that
    is not that of Hann windows.
    """
    own = tensors_of(net)
    refuse_other_spectrum(net, tensors, file)
    weights = {name: value for name, value in tensors.items() if not name.startswith("spectrogram_extractor.")}
    untrusted.compare({name: tuple(value.shape) for name, value in own.items()}, weights, file, "PANNs' Cnn14")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def refuse_other_spectrum(net: Cnn14Net, tensors: dict[str, Tensor], file: str) -> None:
    """Refuse a checkpoint whose spectrum, which it holds as weights of a convolution, is not the one computed here."""
    size = len(net.window)
    turn = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    for part, wave in (("real", turn.cos()), ("imag", -turn.sin())):
        name = f"spectrogram_extractor.stft.conv_{part}.weight"
        if name in tensors:
            expected = (wave * net.window.double()).float()  # of the first band above zero; the others follow from it
            weight = tensors[name]
            if weight.shape != (size // 2 + 1, 1, size):
                raise InputError(
                    f"{file}: tensor {name!r} has the shape {tuple(weight.shape)}, a window of {size} samples "
                    f"was expected; is rate another?"
                )
            if not torch.allclose(weight[1, 0].float(), expected, atol=1e-4):
                raise InputError(f"{file}: its spectrum ({name!r}) is not that of Hann windows of {size} samples")
