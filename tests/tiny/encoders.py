"""Tiny random models of the real classes, written to disk the way their libraries write them, for the encoder tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from torchaudio.models import wav2vec2_model, wavlm_model

from mmprefix.encoders.panns import Cnn14Net, tensors_of

CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
CLIP_RESNET: dict[str, Any] = {
    **CLIP,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
}
CLIP_TIMM: dict[str, Any] = {
    **CLIP,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
}
PREPROCESS: dict[str, Any] = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
SPEECH: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [[12, 10, 5], [12, 4, 4], [12, 3, 2], [12, 2, 2]],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 24,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 32,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.1,
    "aux_num_out": None,
}
SPEECH_LAYER: dict[str, Any] = {
    **SPEECH,
    "extractor_mode": "layer_norm",
    "extractor_conv_bias": True,
    "encoder_layer_norm_first": True,
}
WAVLM: dict[str, Any] = {**SPEECH, "encoder_num_buckets": 16, "encoder_max_distance": 40}
_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
_CONVOLUTIONS: dict[str, Any] = {"conv_dim": [12] * 4, "conv_kernel": [10, 4, 3, 2], "conv_stride": [5, 4, 2, 2]}
_POSITIONS: dict[str, Any] = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}


def randomized(model: nn.Module) -> Any:
    """``model`` in evaluation mode with every parameter random: fresh models have zeros and ones that hide faults."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.add_(torch.randn(value.shape, generator=generator))
    return model.eval()


def save_clip(folder: Path, config: dict[str, Any] = CLIP) -> Path:
    """A folder as open_clip publishes its models."""
    folder.mkdir()
    described = json.loads(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    arguments = {key: value for key, value in described["model_cfg"].items() if key != "custom_text"}
    model = randomized(kind(**arguments))
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(
        {k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def _saved(folder: Path, model: Any, extractor: Any) -> Path:
    randomized(model).save_pretrained(folder)
    if extractor is not None:
        extractor.save_pretrained(folder)
    return folder


def save_vision(folder: Path, kind: str) -> Path:
    """A vision model of Transformers with its processor: dinov2, vit (a classifier), siglip, clip, convnext, resnet."""
    sizes: dict[str, Any] = {**_TRANSFORMER, "image_size": 32, "patch_size": 8}
    text: dict[str, Any] = {
        **_TRANSFORMER,
        "vocab_size": 64,
        "projection_size": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    stages: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
    models = {
        "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**sizes)),
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**sizes)),
        "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=sizes)),
        "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=sizes)),
        "clip_vision_model": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**sizes)),
        "convnext": lambda: hf.ConvNextModel(hf.ConvNextConfig(**stages, num_stages=2)),
        "resnet": lambda: hf.ResNetModel(hf.ResNetConfig(**stages, embedding_size=8, layer_type="basic")),
    }
    processors: dict[str, Any] = {
        "siglip": hf.SiglipImageProcessor,
        "clip": hf.CLIPImageProcessor,
        "resnet": hf.ConvNextImageProcessor,
    }
    processor = processors.get(kind, hf.ViTImageProcessor)
    size: Any = {"shortest_edge": 32} if kind in ("clip", "resnet") else {"height": 32, "width": 32}
    crop: dict[str, Any] = {"crop_size": {"height": 32, "width": 32}} if kind == "clip" else {}
    return _saved(folder, models[kind](), processor(size=size, **crop))


TIMM: dict[str, tuple[str, dict[str, Any]]] = {  # architecture of timm, and its arguments
    "efficientnet": ("test_efficientnet", {"num_classes": 7}),
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 3, "num_heads": 2, "reg_tokens": 4, "img_size": 64}),
    "convnext": ("convnext_atto", {"dims": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "num_classes": 7}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 2],
                                              "img_size": 64, "window_size": 4}),
}  # fmt: skip


def save_timm(folder: Path, kind: str) -> Path:
    """A folder as timm writes it: efficientnet, vit (with a class token and four registers), convnext or swin."""
    architecture, arguments = TIMM[kind]
    torch.manual_seed(11)
    model = randomized(timm.create_model(architecture, **arguments))
    described = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "crop_pct": 0.8}
    save_for_hf(model, str(folder), {"pretrained_cfg": described}, safe_serialization=True, model_args=dict(arguments))
    return folder


def save_clap(folder: Path, fused: bool) -> Path:
    """A ClapModel that hears one second at 16 kHz."""
    bands = 64 if fused else 16  # the published extractor shrinks a long clip to 64 bands, whatever it is told
    audio: dict[str, Any] = {
        "spec_size": 2 * bands if fused else 4 * bands, "num_mel_bins": bands,
        "patch_size": 4, "patch_stride": [4, 4], "window_size": 4,
        "patch_embeds_hidden_size": 8, "depths": [2, 2], "num_attention_heads": [1, 2], "num_hidden_layers": 2,
        "hidden_size": 16, "enable_fusion": fused, "fusion_type": "aff_2d" if fused else None,
        "patch_embed_input_channels": 1, "aff_block_r": 4, "projection_dim": 20,
    }  # fmt: skip
    text = {**_TRANSFORMER, "vocab_size": 64, "projection_dim": 20, "bos_token_id": 1, "eos_token_id": 2}
    config = hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=20)
    extractor = hf.ClapFeatureExtractor(
        feature_size=bands, sampling_rate=16000, hop_length=160, max_length_s=1, fft_window_size=512,
        frequency_min=50, frequency_max=7600, truncation="fusion" if fused else "rand_trunc",
    )  # fmt: skip
    return _saved(folder, hf.ClapModel(config), extractor)


def save_whisper(folder: Path) -> Path:
    """A WhisperForConditionalGeneration that hears two seconds."""
    config = hf.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=100, max_target_positions=16, num_mel_bins=16,
        vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    extractor = hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return _saved(folder, hf.WhisperForConditionalGeneration(config), extractor)


def save_ast(folder: Path) -> Path:
    """An ASTForAudioClassification that hears 1.28 seconds."""
    config = hf.ASTConfig(**_TRANSFORMER, max_length=128, num_mel_bins=32)
    extractor = hf.ASTFeatureExtractor(num_mel_bins=32, max_length=128, mean=-5.0, std=3.0)
    return _saved(folder, hf.ASTForAudioClassification(config), extractor)


def save_speech(folder: Path, kind: str, norm: str) -> Path:
    """A recogniser (CTC) of Transformers: wav2vec2, hubert or wavlm, with ``norm`` (group, layer) in its extractor."""
    configs: dict[str, Any] = {
        "wav2vec2": (hf.Wav2Vec2Config, hf.Wav2Vec2ForCTC),
        "hubert": (hf.HubertConfig, hf.HubertForCTC),
        "wavlm": (hf.WavLMConfig, hf.WavLMForCTC),
    }
    config, model = configs[kind]
    layer = norm == "layer"
    settings: dict[str, Any] = {
        **_TRANSFORMER,
        **_CONVOLUTIONS,
        **_POSITIONS,
        "feat_extract_norm": norm,
        "conv_bias": layer,
    }
    if kind == "wavlm":
        settings |= {"num_buckets": 16, "max_bucket_distance": 40}
    made = model(config(**settings, do_stable_layer_norm=layer, vocab_size=12))
    return _saved(folder, made, hf.Wav2Vec2FeatureExtractor(do_normalize=layer, return_attention_mask=layer))


def save_speech_file(file: Path, kind: str, params: dict[str, Any], normalize: bool = False) -> tuple[Path, Path]:
    """The state of a torchaudio model and the JSON that describes it."""
    model = randomized({"Wav2Vec2": wav2vec2_model, "WavLM": wavlm_model}[kind](**params))
    torch.save(model.state_dict(), file)
    described = {"type": kind, "sample_rate": 16000, "normalize_waveform": normalize, "params": params}
    file.with_suffix(".json").write_text(json.dumps(described))
    return file, file.with_suffix(".json")


def save_gpt2(folder: Path) -> Path:
    """A model that reads text only."""
    return _saved(folder, hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64)), None)


PANNS: dict[str, Any] = {"rate": 16000, "mels": 16, "channels": (4, 6, 8), "classes": 20}


def save_panns(file: Path, rate: int = 16000) -> Path:
    """A Cnn14 as PANNs' training program saves it: its state under "model", beside what a sampler remembers."""
    window, hop, low, high = {16000: (512, 160, 50.0, 8000.0), 32000: (1024, 320, 50.0, 14000.0)}[rate]
    front: dict[str, Any] = {"rate": rate, "window": window, "hop": hop, "low": low, "high": high}
    net = randomized(Cnn14Net(**front, mels=16, channels=[4, 6, 8], classes=20))
    state = {name: value.clone() for name, value in tensors_of(net).items()}
    turn = torch.outer(torch.arange(window // 2 + 1.0), torch.arange(float(window))) * (2 * torch.pi / window)
    for part, wave in (("real", turn.cos()), ("imag", -turn.sin())):
        state[f"spectrogram_extractor.stft.conv_{part}.weight"] = (wave * torch.hann_window(window))[:, None]
    sampler = {"indexes_per_class": [np.arange(3), np.arange(2)], "queue": [1, 2], "pointers": [np.int64(1)]}
    torch.save({"iteration": 600000, "model": state, "sampler": sampler}, file)
    return file
