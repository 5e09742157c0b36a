"""Self-supervised speech models: wav2vec 2.0, HuBERT, WavLM; from torchaudio or from Transformers.

wav2vec 2.0, https://arxiv.org/abs/2006.11477; HuBERT, https://arxiv.org/abs/2106.07447; WavLM,
https://arxiv.org/abs/2110.13900. The base models normalise their first convolution over time, so padding would change
every frame; a batch is therefore run so that it equals its clips one at a time.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchaudio
from safetensors.torch import load_file
from torch import Tensor, nn
from torchaudio.models import wav2vec2_model, wavlm_model
from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention
from torchaudio.pipelines import Wav2Vec2Bundle
from transformers import AutoModel, Wav2Vec2FeatureExtractor

from mmprefix.encoders.audio_input import ReadWaveform, length_mask, masked_mean, zero_padding
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.types import Features, Media
from mmprefix.weights import source as sources
from mmprefix.weights import transformers

_KINDS = ("wav2vec2", "hubert", "wavlm")
_BUILDERS: dict[str, Callable[..., nn.Module]] = {"Wav2Vec2": wav2vec2_model, "WavLM": wavlm_model}


class TorchaudioSpeech(nn.Module):
    """States of the last layer of a torchaudio model, without the head of a recogniser."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.model.aux = None
        convolutions = model.feature_extractor.conv_layers
        self.convolutions = [(layer.kernel_size, layer.stride) for layer in convolutions]
        self.width = model.encoder.transformer.layer_norm.normalized_shape[0]
        over_time = any(isinstance(layer.layer_norm, nn.GroupNorm) for layer in convolutions)
        # torchaudio's WavLM takes no mask at all
        self.masks = not over_time and not any(isinstance(part, WavLMSelfAttention) for part in model.modules())

    def forward(self, values: Tensor, lengths: Tensor | None) -> Tensor:
        """Samples (B S), and lengths (B) unless all are S → states (B T D)."""
        return self.model(values, lengths)[0]


class TransformersSpeech(nn.Module):
    """Last hidden states of a Wav2Vec2Model, HubertModel or WavLMModel."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        self.model = model
        adapted = bool(getattr(config, "add_adapter", False))
        self.convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        if adapted:
            self.convolutions += [(1, config.adapter_stride)] * config.num_adapter_layers
        self.width = config.output_hidden_size if adapted else config.hidden_size
        self.masks = config.feat_extract_norm == "layer" and not adapted

    def forward(self, values: Tensor, lengths: Tensor | None) -> Tensor:
        """Samples (B S), and lengths (B) unless all are S → states (B T D)."""
        mask = None if lengths is None else length_mask(lengths, values.shape[1]).long()
        return self.model(values, attention_mask=mask).last_hidden_state


class Speech(Encoder):
    """Wav2vec 2.0, HuBERT or WavLM model; about fifty frames a second.

    Frames are the last layer's states, the summary is their mean. Models that normalise over time (all base models:
    ``extractor_mode="group_norm"``, ``feat_extract_norm="group"``), torchaudio's WavLM, which takes no mask, and models
    with an adapter run clips of one length together and different lengths one after another; the others run a batch
    with masks. A clip shorter than one frame (25 ms) is padded with silence to one.

    Args:
        model: a bundle of torchaudio.pipelines (``WAV2VEC2_BASE``, ``HUBERT_LARGE``, ``WAVLM_BASE_PLUS``), downloaded
            by torchaudio; a folder, ``mmprefix:NAME`` or hub name of a Transformers model; or a file with the state of
            a torchaudio model (.pt, .pth, .safetensors) and its ``config``.
        revision: the hub's branch, tag or commit.
        config: for a file of weights: the bundle whose architecture it has, or a JSON file: ``type`` (Wav2Vec2 or
            WavLM), ``sample_rate``, ``normalize_waveform`` and ``params``, the arguments of torchaudio's builder
            (wav2vec2_model, wavlm_model).
        dtype: precision of the weights: float32, float16 or bfloat16. Features are always float32.
    """

    input_kind = "audio"
    path_options = ("model", "config")

    def __init__(
        self, model: str, revision: str | None = None, config: str | None = None, dtype: str = "float32"
    ) -> None:
        super().__init__()
        wanted = transformers.precision(dtype)
        if model.isupper() and not Path(model).exists():  # names of bundles are upper case; those of the hub are not
            network, weights, rate, self.floor = _bundled(model)
            self.identity = sources.Provenance(model, None, sources.fingerprint([weights]))
        elif Path(model).suffix in (".pt", ".pth", ".safetensors"):
            network, weights, rate, self.floor = _from_file(Path(model).expanduser(), config)
            self.identity = sources.Provenance(model, None, sources.fingerprint([weights]))
        else:
            path = sources.resolve_folder(model, revision)
            transformers.require_model_type(model, path, _KINDS, "Speech")
            self.identity = sources.provenance_of(model, path)
            network, rate, self.floor = _from_folder(model, path, dtype)
        self.network = network.to(wanted)
        self.dim = self.pooled_dim = network.width
        self.preprocess = ReadWaveform(rate)
        self.freeze()

    def encode(self, media: Media) -> Features:
        """Samples (B S) → frames (B T D), mask (B T), pooled (B D)."""
        values, lengths = zero_padding(media, least=self._least())
        values = self._scaled(values[:, : int(lengths.max())], lengths)
        values = values.to(next(self.network.parameters()).dtype)
        counts = lengths
        for kernel, stride in self.network.convolutions:
            counts = (counts - kernel).div(stride, rounding_mode="floor") + 1
        mask = length_mask(counts, int(counts.max()))
        states = self.network(values, lengths) if self.network.masks else self._by_length(values, lengths, mask)
        frames = states.float().masked_fill(~mask.unsqueeze(2), 0.0)
        return Features(frames, mask, masked_mean(frames, mask))

    def _by_length(self, values: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """States (B T D) without padding: clips of one length are run together."""
        states = values.new_zeros(*mask.shape, self.dim)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            output = self.network(values[rows, :length], None)
            states[rows, : output.shape[1]] = output
        return states

    def _scaled(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Scale each clip to mean 0 and variance 1 over its own samples, for models that were trained so."""
        if self.floor is None:
            return values
        sound, count = length_mask(lengths, values.shape[1]), lengths.unsqueeze(1)
        centred = (values - values.sum(1, keepdim=True) / count).masked_fill(~sound, 0.0)
        return centred * (centred.square().sum(1, keepdim=True) / count + self.floor).rsqrt()

    def _least(self) -> int:
        """Samples of one frame."""
        size = 1
        for kernel, stride in reversed(self.network.convolutions):
            size = (size - 1) * stride + kernel
        return size


def _bundled(name: str) -> tuple[TorchaudioSpeech, Path, int, float | None]:
    """Load a bundle; returns the network, its file, its rate in Hz, and the floor of the variance it divides by."""
    bundle = getattr(torchaudio.pipelines, name, None)
    if not isinstance(bundle, Wav2Vec2Bundle):
        bundles = [key for key, value in vars(torchaudio.pipelines).items() if isinstance(value, Wav2Vec2Bundle)]
        close = ", ".join(difflib.get_close_matches(name, bundles, 3, 0.3))
        raise InputError(
            f"model: {name!r} is no folder, and no speech bundle of torchaudio.pipelines; near it: {close}"
        )
    try:
        model = bundle.get_model()
    except Exception as error:  # urllib's and torch.load's many kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"{name!r}: torchaudio could not fetch or read this bundle ({reason}); "
            "give a file of its weights and config, or a folder of a Transformers model"
        ) from error
    weights = Path(torch.hub.get_dir(), "checkpoints", Path(bundle._path).name)
    inner = model.model if bundle._normalize_waveform else model
    return TorchaudioSpeech(inner), weights, int(bundle.sample_rate), _floor(bundle._normalize_waveform)


def _floor(normalize: bool) -> float | None:
    return 1e-5 if normalize else None  # added to the variance by torch's layer_norm, which the bundles call


def _from_file(file: Path, config: str | None) -> tuple[TorchaudioSpeech, Path, int, float | None]:
    if not file.is_file():
        raise InputError(f"{str(file)!r}: no such file")
    kind, params, rate, normalize = _architecture(file, config)
    try:
        model = _BUILDERS[kind](**{**params, "aux_num_out": None})
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith("aux.")})
    except Exception as error:  # the readers of safetensors and pickle raise a dozen kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{str(file)!r}: is no {kind} model of config {config!r}: {reason}") from error
    return TorchaudioSpeech(model), file, rate, _floor(normalize)


def _architecture(file: Path, config: str | None) -> tuple[str, dict[str, Any], int, bool]:
    bundle = getattr(torchaudio.pipelines, config or "", None)
    if isinstance(bundle, Wav2Vec2Bundle):
        return bundle._model_type, bundle._params, int(bundle.sample_rate), bundle._normalize_waveform
    if config is None or not Path(config).expanduser().is_file():
        raise InputError(
            f"config: {config!r} is neither a bundle of torchaudio.pipelines nor a JSON file; "
            f"the weights in {file} need one"
        )
    settings: dict[str, Any] = dict(sources.read_json(Path(config).expanduser()))
    kind, params = settings.get("type"), settings.get("params")
    if kind not in _BUILDERS or not isinstance(params, dict):
        raise InputError(f"{config}: type must be one of {', '.join(_BUILDERS)}, and params an object")
    known = set(inspect.signature(_BUILDERS[kind]).parameters)
    if strange := sorted(set(params) - known):
        raise InputError(f"{config}: params: {kind} takes no {strange[0]!r}; it takes {', '.join(sorted(known))}")
    return kind, params, int(settings.get("sample_rate", 16000)), bool(settings.get("normalize_waveform", False))


def _from_folder(name: str, path: Path, dtype: str) -> tuple[TransformersSpeech, int, float | None]:
    model, _ = transformers.load_model(
        AutoModel, name, path, dtype, optional=("masked_spec_embed",)
    )  # only training uses it
    extractor = transformers.extractor(Wav2Vec2FeatureExtractor, path, {"do_normalize": True})
    return TransformersSpeech(model), extractor.sampling_rate, 1e-7 if extractor.do_normalize else None
