"""Whisper's encoder: robust speech features, fifty frames a second.

Robust Speech Recognition via Large-Scale Weak Supervision, https://arxiv.org/abs/2212.04356. Whisper reads a window of
fixed length (30 s) padded with silence; here the silence is masked, and a longer clip takes several windows. With
``silence`` a shorter window is encoded. Its length depends on the clip alone, so that a batch still equals its items.

Whisper's decoder reads badly from a short window: it repeats itself instead of ending. ``window: filled`` gives it a
whole one, whose silent rest is the rest of a window of silence that was encoded once (measured: docs/slu.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, pad
from transformers import WhisperFeatureExtractor, WhisperModel

from mmprefix.encoders.audio_input import ReadWaveform, join_windows, masked_mean, mel_power, split_windows
from mmprefix.encoders.base import Encoder, EncoderMode
from mmprefix.errors import InputError, require_one_of
from mmprefix.types import Features, Media, to_list
from mmprefix.weights import dry_run, transformers
from mmprefix.weights import source as sources

_AT_ONCE = 16  # windows encoded together: memory must not grow with the length of a recording
_FRAMES_AT_ONCE = 6000  # of the spectrogram of a recording, for the same reason


class LogMel:
    """Spectrogram of WhisperFeatureExtractor for a batch, on the device of the samples.

    Not a module: its filters must stay in float32 when the network is converted to lower precision.
    """

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        self.size, self.hop = extractor.n_fft, extractor.hop_length
        self.filters = torch.from_numpy(extractor.mel_filters).float()  # (K M)

    def __call__(self, values: Tensor) -> Tensor:
        """Whole windows (N W) → log-mel spectrograms (N M W / hop), the loudest 80 dB of each, about -1 to 1."""
        return _loudest(mel_power(values.float(), self.filters, self.size, self.hop)[..., :-1])

    def recording(self, values: Tensor) -> Tensor:
        """Samples (S) of a recording of any length → its log-mel spectrogram (M S // hop), of its loudest 80 dB."""
        frames, half = len(values) // self.hop, self.size // 2
        padded = pad(values.float()[None], (half, half), mode="reflect")
        pieces = [
            mel_power(part, self.filters, self.size, self.hop, center=False)
            for part in (
                padded[:, first * self.hop : (min(first + _FRAMES_AT_ONCE, frames) - 1) * self.hop + self.size]
                for first in range(0, frames, _FRAMES_AT_ONCE)
            )
        ]
        return _loudest(torch.cat(pieces, dim=2))[0]


def _loudest(power: Tensor) -> Tensor:
    """Power in mel bands (N M F) → Whisper's scale: log10 of the loudest 80 dB of each, about -1 to 1."""
    level = power.clamp(min=1e-10).log10()
    return (level.maximum(level.amax((1, 2), keepdim=True) - 8) + 4) / 4


class Whisper(Encoder):
    """Encoder of a Whisper model; its decoder is dropped after loading.

    Frames are the encoder's last hidden states, or those of ``layer``; T is that of the longest clip. The length of the
    window follows from the model's positions (``max_source_positions`` frames of two hops), whatever chunk the
    preprocessor names. The summary is the mean of the frames that hold sound.

    Args:
        model: a folder, ``mmprefix:NAME``, or a hub name: WhisperModel or WhisperForConditionalGeneration.
        revision: the hub's branch, tag or commit.
        long: for clips longer than the window: ``join`` encodes all windows and joins their frames, which a mapper can
            read, while Whisper's own decoder knows one window (it says so); ``cut`` encodes only the first.
        window: frames that are real: ``sound``, those that hold sound; ``whole``, all that are encoded of each window,
            silence too, as Whisper's own decoder reads them; ``filled``, as many as a window has, of which those that
            ``silence`` leaves out are of a window of silence.
        silence: seconds of silence that are encoded behind the sound, and as much more as makes whole seconds; None: up
            to the window's end, as Whisper was trained.
        layer: the layer whose hidden states are the frames, counted from 1; the layers behind it are dropped. None: the
            last, normalised, which Whisper's own decoder reads. Sounds that are no speech are told apart better half
            way: Whisper-AT (Gong et al.), https://arxiv.org/abs/2307.03183.
        dtype: precision of the weights: float32, float16 or bfloat16. Features are always float32.
    """

    input_kind = "audio"

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        long: Literal["join", "cut"] = "join",
        window: Literal["sound", "whole", "filled"] = "sound",
        silence: float | None = None,
        layer: int | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        require_one_of("long", long, ("join", "cut"))
        require_one_of("window", window, ("sound", "whole", "filled"))
        if silence is not None and not 0 <= silence < float("inf"):
            raise InputError(f"silence {silence}: give seconds from 0 on, or null for the whole window")
        self.long, self.window, self.silence = long, window, silence
        path = sources.resolve_folder(model, revision, weights=not dry_run.sizes_only())
        transformers.require_model_type(model, path, ("whisper",), "Whisper")
        self.identity = sources.provenance_of(model, path)
        network, _ = transformers.load_model(WhisperModel, model, path, dtype, optional=("decoder.",))
        self.network = network.encoder
        if layer is not None:
            self._drop_layers(model, layer)
        extractor = transformers.extractor(
            WhisperFeatureExtractor, path, {"feature_size": self.network.config.num_mel_bins}
        )
        self.logmel = LogMel(extractor)
        self.size = 2 * self.network.config.max_source_positions * self.logmel.hop  # samples in a window
        self.dim = self.pooled_dim = self.network.config.d_model
        self.rate = rate = int(extractor.sampling_rate)
        self._silent: Tensor | None = None  # frames (F D) of a window of silence, for windows that are filled
        self.preprocess = ReadWaveform(rate, self.size / rate if long == "cut" else None)
        self.freeze()

    def _drop_layers(self, model: str, last: int) -> None:
        """Drop all layers behind layer ``last``, and the norm at their end; InputError if there is no such layer."""
        count = len(self.network.layers)
        if not 1 <= last <= count:
            raise InputError(f"layer {last}: the encoder of {model!r} has {count}; give 1 to {count}, or null")
        self.network.layers = self.network.layers[:last]
        self.network.layer_norm = torch.nn.Identity()

    def encode(self, media: Media) -> Features:
        """Samples (B S) → frames (B T D), mask (B T), pooled (B D)."""
        return self._encode(media, self.silence)

    def encode_whole_windows(self, media: Media) -> Features:
        """Samples (B S) → features as without ``silence``: those of whole windows."""
        return self._encode(media, None)

    def _encode(self, media: Media, silence: float | None) -> Features:
        cut = split_windows(media, self.size, join=self.long == "join")
        step, clips = 2 * self.logmel.hop, len(media.lengths)  # samples a frame
        sound = cut.lengths.add(step - 1).div(step, rounding_mode="floor")
        encoded = self._window_lengths(cut.lengths, silence)
        frames = self._windows(cut.values, encoded)
        encoded = encoded.div(step, rounding_mode="floor")
        joined, mask = join_windows(frames, sound, cut.owner, clips)
        pooled = masked_mean(joined, mask)
        if self.window == "filled" and silence is not None:
            frames, encoded = self._filled(frames, encoded), torch.full_like(encoded, self.size // step)
        if self.window != "sound":
            joined, mask = join_windows(frames, encoded, cut.owner, clips)
        return Features(joined, mask, pooled)

    def _filled(self, frames: Tensor, encoded: Tensor) -> Tensor:
        """Frames (N F D), the first ``encoded`` (N) of each → whole windows, the rest of a window of silence."""
        silent = self._silent
        if silent is None or silent.device != frames.device or self.mode is EncoderMode.LEARNING:
            silent = self._silent = self._forward(frames.new_zeros(1, self.size))[0]
        rest = torch.arange(len(silent), device=frames.device) >= encoded[:, None]
        frames = pad(frames, (0, 0, 0, len(silent) - frames.shape[1]))
        return torch.where(rest[..., None], silent, frames)

    def _window_lengths(self, sound: Tensor, silence: float | None) -> Tensor:
        """Samples to encode (N) of windows with so many samples of sound (N) and seconds of ``silence`` behind it."""
        if silence is None:
            return torch.full_like(sound, self.size)
        step, seconds = 2 * self.logmel.hop, sound.double().div(self.rate).add(silence).ceil()
        return seconds.mul(self.rate / step).ceil().mul(step).to(sound.dtype).clamp(step, self.size)

    def _windows(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Windows (N W), the first ``lengths`` (N) samples of each → last hidden states (N F D), zero behind those.

        Windows of one length are encoded together: no padding takes part in the attention.
        """
        sizes = sorted({int(length) for length in to_list(lengths)})
        if sizes == [values.shape[1]]:
            return torch.cat([self._forward(chunk) for chunk in values.split(_AT_ONCE)])
        frames = values.new_zeros(len(values), sizes[-1] // (2 * self.logmel.hop), self.dim, dtype=torch.float32)
        for size in sizes:
            for rows in (lengths == size).nonzero()[:, 0].split(_AT_ONCE):
                states = self._forward(values[rows, :size])
                frames[rows, : states.shape[1]] = states
        return frames

    def _forward(self, values: Tensor) -> Tensor:
        """Windows (N W) → last hidden states (N F D)."""
        return self.states(self.logmel(values))

    def states(self, mel: Tensor) -> Tensor:
        """Log-mel spectrograms (N M 2F) of at most the window → last hidden states (N F D), float32."""
        mel = mel.to(self.network.dtype)
        if mel.shape[2] * self.logmel.hop == self.size:
            return self.network(mel).last_hidden_state.float()
        return self._shorter(mel).float()

    def _shorter(self, mel: Tensor) -> Tensor:
        """``WhisperEncoder.forward`` for spectrograms (N M 2F) shorter than the window, which it refuses."""
        network = self.network
        hidden = gelu(network.conv2(gelu(network.conv1(mel)))).transpose(1, 2)  # (N F D)
        hidden = hidden + network.embed_positions.weight[: hidden.shape[1]]
        for layer in network.layers:
            hidden = layer(hidden, None)
        return network.layer_norm(hidden)
