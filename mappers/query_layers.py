"""Layers in which queries attend to each other, then to what they read: those of a transformer decoder."""

from __future__ import annotations

from torch import nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper


def query_layers(mapper: Mapper, width: int, heads: int, *, layers: int, dropout: float) -> nn.TransformerDecoder:
    """``layers`` pre-norm layers of ``width`` with GELU; InputError for ``heads`` that do not divide it."""
    if width % heads:
        raise InputError(f"{type(mapper).__name__}: heads={heads} does not divide the width {width}")
    layer = nn.TransformerDecoderLayer(
        width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
