"""Kinds of models by ``model_type`` in config.json: what each is, and the class of this package that reads it."""

from __future__ import annotations

from pathlib import Path

from transformers.models.auto import modeling_auto as auto

from mmprefix.weights import source as sources

_CROSS, _CAUSAL = "mmprefix.decoders.CrossDecoder", "mmprefix.decoders.CausalDecoder"
_SOUND = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm"), ("an encoder of speech", "mmprefix.encoders.speech.Speech")),
    **dict.fromkeys(("clap", "clap_audio_model"), ("an encoder of sound", "mmprefix.encoders.clap.Clap")),
    "audio-spectrogram-transformer": ("an encoder of sound", "mmprefix.encoders.ast.AST"),
}
_WHISPER = ("a speech recogniser", f"{_CROSS} for its decoder, mmprefix.encoders.whisper.Whisper for its encoder")
_TIMM = ("an encoder of pictures of timm", "mmprefix.encoders.timm.Timm")


def kind_and_class(kind: str) -> tuple[str, str]:
    """Noun for a model of type ``kind``, and the class that reads it ("": none); two empty texts if unknown."""
    if kind == "whisper":
        return _WHISPER
    if kind == "timm_wrapper":
        return _TIMM
    if kind in _SOUND:
        return _SOUND[kind]
    if kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        learned = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # BART and its like have a class for their decoder
        return "an encoder and a decoder of text", _CROSS if learned else ""
    classified = kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if classified or kind in auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "an encoder of pictures", "mmprefix.encoders.vit.ViT"
    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "an encoder of text", "mmprefix.encoders.text.Text"
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "a causal language model", f"{_CAUSAL} or mmprefix.decoders.WordDecoder"
    return "", ""


def described(kind: str) -> str:
    """Words for a model of type ``kind``: "a 'vit' model (an encoder of pictures)"."""
    what, _ = kind_and_class(kind)
    return f"a {kind!r} model" + (f" ({what})" if what else "")


def advice(kind: str) -> str:
    """End of a sentence that names the class for ``kind``: "; use mmprefix..."; empty if there is none."""
    _, cls = kind_and_class(kind)
    return f"; use {cls}" if cls else ""


def of_another_library(path: Path) -> str:
    """Noun for what a folder without ``model_type`` holds, with the class that reads it; empty if it is not known."""
    if (path / sources.RECIPE).is_file():
        return "a model that mmprefix saved, which is no frozen part; mmprefix caption and the other verbs read it"
    if (path / "open_clip_config.json").is_file():
        return "a model of open_clip; use mmprefix.encoders.clip.Clip"
    file = path / "config.json"
    if file.is_file() and {"architecture", "pretrained_cfg"} <= sources.read_json(file).keys():
        return f"{_TIMM[0]}; use {_TIMM[1]}"
    if (path / "modules.json").is_file():
        return "a sentence encoder"
    if any(path.glob(f"*{sources.GGUF}")):
        return f"a language model as .gguf; use {_CAUSAL}"
    return ""
