"""Layers with attention in the network of a frozen encoder, and how wide what they read is."""

from __future__ import annotations

from torch import nn

from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError


def attention_layers(option: str, encoder: Encoder) -> list[nn.Module]:
    """Layers with attention of the encoder's network. Raises InputError, for the ``option``, where it has none."""
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and all(_attends(layer) for layer in module):
            return list(module)
    raise InputError(
        f"{option}: {type(encoder).__name__} of {encoder.identity.source!r} has no list of layers with "
        "attention; use one over a transformer: ViT, AST, Whisper, Text"
    )


def _attends(layer: nn.Module) -> bool:
    return any("attention" in name or "attn" in name for name, _ in layer.named_children())


def input_width(option: str, layer: nn.Module) -> int:
    """Width of a layer's input, by its first norm. Raises InputError, for the ``option``, for a layer without."""
    norm = next((module for module in layer.modules() if isinstance(module, nn.LayerNorm)), None)
    if norm is None:
        raise InputError(f"{option}: its layers have no LayerNorm, so their width is not known")
    return int(norm.normalized_shape[0])
