"""CLAP's audio tower: embeddings of sounds in the space of their descriptions.

Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption Augmentation,
https://arxiv.org/abs/2211.06687; the tower is HTSAT, https://arxiv.org/abs/2202.00874. The published preprocessing
crops long clips at random and marks one clip of a batch as long; here a sound always gives the same features,
whatever it is batched with.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

from mmprefix.encoders.audio_input import ReadWaveform, join_windows, mel_power, split_windows, zero_padding
from mmprefix.encoders.base import Encoder
from mmprefix.errors import require_one_of
from mmprefix.types import Features, Media
from mmprefix.weights import source as sources
from mmprefix.weights import transformers

_AT_ONCE = 16  # windows encoded together: memory must not grow with the length of a recording


class Decibels:
    """Log-mel spectrogram of ClapFeatureExtractor for a batch, on the device of the samples.

    Computed in float64, as the extractor does: its floor of -100 dB lies below the rounding noise of float32.
    """

    def __init__(self, extractor: ClapFeatureExtractor, fused: bool) -> None:
        self.size, self.hop = extractor.fft_window_size, extractor.hop_length
        self.padding, self.samples = extractor.padding, extractor.nb_max_samples
        filters = extractor.mel_filters if fused else extractor.mel_filters_slaney
        self.filters = torch.from_numpy(filters)  # (K M)

    def __call__(self, values: Tensor) -> Tensor:
        """Samples (N W) → decibels (N F M), float32."""
        power = mel_power(values.double(), self.filters, self.size, self.hop)
        return power.clamp(min=1e-10).log10().mul(10).transpose(1, 2).float()

    def repeated(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Windows (N W) with the sound repeated to the end, as the extractor's ``padding`` says."""
        positions = torch.arange(values.shape[1], device=values.device).expand_as(values)
        last = {"repeat": values.shape[1], "repeatpad": values.shape[1] // lengths * lengths}.get(self.padding, lengths)
        again = values.gather(1, positions % lengths[:, None])
        return again.masked_fill(positions >= torch.as_tensor(last, device=values.device).reshape(-1, 1), 0.0)

    def fused(self, values: Tensor) -> tuple[Tensor, bool]:
        """Clip (S,) longer than the window → its whole spectrogram shrunk to the window, and three excerpts (4 F M).

        The excerpts lie in the middle of the thirds that the extractor draws them from. The flag is True for a longer
        clip, False for one that is longer by less than a hop.
        """
        level = self(values[None])[0]  # (F' M)
        size = self.samples // self.hop + 1
        if len(level) == size:
            return level.expand(4, -1, -1), False
        whole = interpolate(level[None, None], size=(size, level.shape[1]), mode="bilinear", align_corners=False)
        thirds = torch.arange(len(level) - size + 1).tensor_split(3)
        first = [int(third[len(third) // 2]) if len(third) else 0 for third in thirds]
        return torch.stack([whole[0, 0], *(level[at : at + size] for at in first)]), True


class Clap(Encoder):
    """Audio tower of a ClapModel (or a ClapAudioModelWithProjection); the text tower is never loaded.

    Frames are the tower's last hidden state (B D bands times) in the order of time, all bands of the first time
    first; the mask is True for the clip itself, False for its repetitions that fill the window. The summary is the
    projected embedding. A model without fusion reads a long clip in windows: frames are joined, embeddings averaged.
    A model with fusion reads it whole: its shrunk spectrogram and three excerpts.

    Args:
        model: a folder, ``mmprefix:NAME``, or a hub name.
        revision: the hub's branch, tag or commit.
        long: for a model without fusion and clips longer than the window (10 s): ``join`` reads all windows, ``cut``
            the first.
        dtype: precision of the weights: float32, float16 or bfloat16. Features are always float32.
    """

    input_kind = "audio"

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        long: Literal["join", "cut"] = "join",
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        require_one_of("long", long, ("join", "cut"))
        self.long = long
        path = sources.resolve_folder(model, revision)
        transformers.require_model_type(model, path, ("clap", "clap_audio_model"), "Clap")
        self.identity = sources.provenance_of(model, path)
        self.network, _ = transformers.load_model(ClapAudioModelWithProjection, model, path, dtype)
        extractor = transformers.extractor(
            ClapFeatureExtractor, path, {"feature_size": self.network.config.num_mel_bins}
        )
        self.fusion = bool(self.network.config.enable_fusion)
        self.decibels = Decibels(extractor, self.fusion)
        self.dim, self.bands, self.times = _shape(self.network.audio_model.audio_encoder)
        self.pooled_dim = self.network.config.projection_dim
        seconds = extractor.max_length_s if long == "cut" and not self.fusion else None
        self.preprocess = ReadWaveform(extractor.sampling_rate, seconds)
        self.freeze()

    def encode(self, media: Media) -> Features:
        """Samples (B S) → frames (B T D), mask (B T), pooled (B G)."""
        return self._whole(media) if self.fusion else self._windowed(media)

    def _windowed(self, media: Media) -> Features:
        cut = split_windows(media, self.decibels.samples, join=self.long == "join")
        level = self.decibels(self.decibels.repeated(cut.values, cut.lengths)).unsqueeze(1)  # (N 1 F M)
        outputs = [self._forward(chunk, None) for chunk in level.split(_AT_ONCE)]
        frames, embeds = (torch.cat(parts) for parts in zip(*outputs, strict=True))  # (N F D), (N G)
        clips = len(media.lengths)
        share = embeds.new_zeros(clips, len(embeds))  # weight of each window: its samples of sound
        share[cut.owner, torch.arange(len(embeds), device=embeds.device)] = cut.lengths.to(embeds)
        pooled = share @ embeds / share.sum(1, keepdim=True)
        return Features(*join_windows(frames, self._frame_counts(cut.lengths), cut.owner, clips), pooled)

    def _whole(self, media: Media) -> Features:
        values, lengths = zero_padding(media)
        size = self.decibels.samples
        level, longer = [], []
        for clip, length in zip(values, lengths.tolist(), strict=True):
            if length > size:
                mels, long = self.decibels.fused(clip[:length])
            else:
                window = split_windows(Media(clip[None], lengths.new_tensor([length])), size, join=False)
                mels, long = (
                    self.decibels(self.decibels.repeated(window.values, window.lengths)).expand(4, -1, -1),
                    False,
                )
            level.append(mels)
            longer.append([long])
        frames, pooled = self._forward(torch.stack(level), torch.tensor(longer, device=values.device))
        rows = torch.arange(len(lengths), device=values.device)
        return Features(*join_windows(frames, self._frame_counts(lengths.clamp(max=size)), rows, len(lengths)), pooled)

    def _forward(self, level: Tensor, longer: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decibels (N C F M) → frames (N T D) and embeddings (N G)."""
        output = self.network(level.to(self.network.dtype), is_longer=longer)
        states = output.last_hidden_state  # (N D bands times)
        return states.permute(0, 3, 2, 1).flatten(1, 2).float(), output.audio_embeds.float()

    def _frame_counts(self, lengths: Tensor) -> Tensor:
        """Number of frames of a window that hold sound, for ``lengths`` samples of sound."""
        size = self.decibels.samples
        return (lengths * self.times + size - 1).div(size, rounding_mode="floor") * self.bands


def _shape(tower: Any) -> tuple[int, int, int]:
    """Width, bands and times of the HTSAT ``tower``'s output: it folds time into a square image and back."""
    down = 2 ** (tower.num_layers - 1)
    rows, columns = (tower.spec_size // down // stride for stride in tower.patch_stride)
    bands = rows // tower.freq_ratio
    return tower.num_features, bands, rows * columns // bands
