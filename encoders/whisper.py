"""Whisper's encoder: robust speech features, fifty frames a second.

Robust Speech Recognition via Large-Scale Weak Supervision, https://arxiv.org/abs/2212.04356. Whisper hears a window of
fixed length (30 s) that is filled up with silence; here the silence is masked, and a longer clip takes several windows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperModel

from mmprefix.encoders.audio_input import ReadWaveform, join_windows, mean, mel_power, windows
from mmprefix.encoders.base import Encoder
from mmprefix.errors import require_one_of
from mmprefix.types import Features, Media
from mmprefix.weights import dry_run, transformers
from mmprefix.weights import source as sources

_AT_ONCE = 16  # windows that go through the network together: an hour of speech must not need an hour's memory


class LogMel:
    """WhisperFeatureExtractor's spectrogram for a batch, on the device the samples are on.

    Not a module: its filters must stay in float32 when the network is converted to a smaller type.
    """

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        self.size, self.hop = extractor.n_fft, extractor.hop_length
        self.filters = torch.from_numpy(extractor.mel_filters).float()  # (K M)

    def __call__(self, values: Tensor) -> Tensor:
        """Whole windows (N W) → log-mel spectrograms (N M W / hop), the loudest 80 dB of each, about -1 to 1."""
        power = mel_power(values.float(), self.filters, self.size, self.hop)[..., :-1]
        level = power.clamp(min=1e-10).log10()
        return (level.maximum(level.amax((1, 2), keepdim=True) - 8) + 4) / 4


class Whisper(Encoder):
    """The encoder half of a Whisper model; its decoder is dropped after loading.

    Frames are the encoder's last hidden states; T is that of the clip with most. The window's length is what the
    model's positions allow (``max_source_positions`` frames of two hops), whatever chunk the preprocessor names.
    The summary is the mean of the frames that hold sound.

    Args:
        model: a folder, ``mmprefix:NAME``, or a hub name: WhisperModel or WhisperForConditionalGeneration.
        revision: the hub's branch, tag or commit.
        long: what becomes of a clip longer than the window. ``join`` encodes its windows one by one and joins their
            frames; ``cut`` hears the first window only.
        window: which frames are real. ``sound``: those that hold sound. ``whole``: all frames of each window, silence
            too, as Whisper's own decoder reads them.
        dtype: what the weights are held in: float32, float16 or bfloat16. Features are float32 all the same.
    """

    input_kind = "audio"

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        long: Literal["join", "cut"] = "join",
        window: Literal["sound", "whole"] = "sound",
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        require_one_of("long", long, ("join", "cut"))
        require_one_of("window", window, ("sound", "whole"))
        self.long, self.window = long, window
        path = sources.resolve_folder(model, revision, weights=not dry_run.sizes_only())
        transformers.require_model_type(model, path, ("whisper",), "Whisper")
        self.identity = sources.provenance_of(model, path)
        network, _ = transformers.load_model(WhisperModel, model, path, dtype, optional=("decoder.",))
        self.network = network.encoder
        extractor = transformers.extractor(
            WhisperFeatureExtractor, path, {"feature_size": self.network.config.num_mel_bins}
        )
        self.logmel = LogMel(extractor)
        self.size = 2 * self.network.config.max_source_positions * self.logmel.hop  # samples in a window
        self.dim = self.pooled_dim = self.network.config.d_model
        rate = extractor.sampling_rate
        self.preprocess = ReadWaveform(rate, self.size / rate if long == "cut" else None)
        self.freeze()

    def encode(self, media: Media) -> Features:
        """Samples (B S) → frames (B T D), mask (B T), pooled (B D)."""
        cut = windows(media, self.size, join=self.long == "join")
        frames = torch.cat([self._look(some) for some in cut.values.split(_AT_ONCE)])  # (N F D)
        step, clips = 2 * self.logmel.hop, len(media.lengths)  # samples a frame
        sound = cut.lengths.add(step - 1).div(step, rounding_mode="floor")
        heard, mask = join_windows(frames, sound, cut.owner, clips)
        pooled = mean(heard, mask)
        if self.window == "whole":
            heard, mask = join_windows(frames, torch.full_like(sound, frames.shape[1]), cut.owner, clips)
        return Features(heard, mask, pooled)

    def _look(self, values: Tensor) -> Tensor:
        mel = self.logmel(values).to(self.network.dtype)  # (N M 2F)
        return self.network(mel).last_hidden_state.float()  # (N F D)
