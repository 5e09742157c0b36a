"""AST: a vision transformer over the spectrogram of a sound.

AST: Audio Spectrogram Transformer, https://arxiv.org/abs/2104.01778. Its input has one fixed length (about ten
seconds); a shorter clip is padded, and patches of padding alone are masked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.compliance import kaldi
from transformers import ASTFeatureExtractor, ASTModel

from mmprefix.encoders.audio_input import ReadWaveform, length_mask, zero_padding
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.types import Features, Media
from mmprefix.weights import source as sources
from mmprefix.weights import transformers

_KIND = "audio-spectrogram-transformer"


class Fbank:
    """Spectrogram of ASTFeatureExtractor (Kaldi's filter bank) for a batch, on the device of the samples.

    Not a module: its filters must stay in float32 when the network is converted to lower precision.
    """

    def __init__(self, extractor: ASTFeatureExtractor) -> None:
        rate, bands = extractor.sampling_rate, extractor.num_mel_bins
        self.size, self.hop = rate * 25 // 1000, rate * 10 // 1000  # samples: Kaldi's 25 ms every 10 ms
        self.fft = 1 << (self.size - 1).bit_length()
        banks, _ = kaldi.get_mel_banks(bands, self.fft, rate, 20.0, 0.0, 100.0, -500.0, 1.0)
        self.filters = pad(banks, (0, 1)).T  # (K M)
        self.frames = extractor.max_length
        self.mean, self.std = (extractor.mean, extractor.std) if extractor.do_normalize else (0.0, 0.5)

    def __call__(self, media: Media) -> tuple[Tensor, Tensor]:
        """Samples (B S) → log-mel frames (B F M), F constant, and the number of them that hold sound (B)."""
        values, lengths = zero_padding(media, least=self.size)
        values = values[:, : self.size + (self.frames - 1) * self.hop].float()
        lengths = lengths.clamp(max=values.shape[1])
        pieces = values.unfold(1, self.size, self.hop)  # (B F N)
        pieces = pieces - pieces.mean(2, keepdim=True)
        pieces = pieces - 0.97 * torch.cat([pieces[..., :1], pieces[..., :-1]], 2)
        pieces = pieces * torch.hann_window(self.size, periodic=False, device=values.device)
        power = torch.fft.rfft(pieces, self.fft).abs().square() @ self.filters.to(values)  # (B F M)
        level = power.clamp(min=torch.finfo(torch.float32).eps).log()
        counts = (lengths - self.size).div(self.hop, rounding_mode="floor") + 1
        level = level.masked_fill(~length_mask(counts, level.shape[1]).unsqueeze(2), 0.0)
        level = pad(level, (0, 0, 0, self.frames - level.shape[1]))
        return (level - self.mean) / (2 * self.std), counts


class AST(Encoder):
    """Audio Spectrogram Transformer (ASTModel or ASTForAudioClassification).

    Frames are the model's last hidden state: class token, distillation token, then the patches, all times of the
    lowest band first. T is the same for every clip; the mask is True for the two tokens and for the patches that hold
    sound. Samples beyond the model's length (``max_length`` hops of 10 ms) are dropped. The summary is the model's
    ``pooler_output``, the mean of the two tokens.

    Args:
        model: a folder, ``mmprefix:NAME``, or a hub name.
        revision: the hub's branch, tag or commit.
        dtype: precision of the weights: float32, float16 or bfloat16. Features are always float32.
    """

    input_kind = "audio"

    def __init__(self, model: str, revision: str | None = None, dtype: str = "float32") -> None:
        super().__init__()
        path = sources.resolve_folder(model, revision)
        transformers.require_model_type(model, path, (_KIND,), "AST")
        self.identity = sources.provenance_of(model, path)
        self.network, _ = transformers.load_model(ASTModel, model, path, dtype)
        config = self.network.config
        shape = {"num_mel_bins": config.num_mel_bins, "max_length": config.max_length}
        extractor = transformers.extractor(ASTFeatureExtractor, path, shape)
        for option, value in shape.items():
            if getattr(extractor, option) != value:
                raise InputError(
                    f"{model!r}: {option} is {value} in config.json but {getattr(extractor, option)} in "
                    f"preprocessor_config.json of {path}"
                )
        self.fbank = Fbank(extractor)
        self.bands, self.times = self.network.embeddings.get_shape(config)
        self.dim = self.pooled_dim = config.hidden_size
        rate = extractor.sampling_rate
        self.preprocess = ReadWaveform(rate, (self.fbank.size + (self.fbank.frames - 1) * self.fbank.hop) / rate)
        self.freeze()

    def encode(self, media: Media) -> Features:
        """Samples (B S) → frames (B T D), mask (B T), pooled (B D)."""
        level, counts = self.fbank(media)
        output = self.network(level.to(self.network.dtype))
        stride = self.network.config.time_stride
        patches = counts.add(stride - 1).div(stride, rounding_mode="floor")  # along time, those that begin within sound
        tokens = torch.ones(len(counts), 2, dtype=torch.bool, device=counts.device)
        mask = torch.cat([tokens, length_mask(patches, self.times).repeat(1, self.bands)], 1)
        return Features(output.last_hidden_state.float(), mask, output.pooler_output.float())
