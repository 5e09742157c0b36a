"""Checkpoints in the formats that ClipCap and Prefix-AAC release, of any size, with random weights.

Names and shapes are those of the published programs, written down here and not taken from our modules, so that an
importer can be tried without the files. Matrices are normal with standard deviation 1 / sqrt(fan-in), so that
activations keep their size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Gpt2Sizes:
    """Sizes of a GPT-2, by default those of the released small one."""

    layers: int = 12
    width: int = 768
    vocabulary: int = 50257
    positions: int = 1024

    def shapes(self, start: str) -> Shapes:
        """Names and shapes of GPT2Model's tensors; names begin with ``start``."""
        e = self.width
        shapes: Shapes = {f"{start}wte.weight": (self.vocabulary, e), f"{start}wpe.weight": (self.positions, e)}
        for i in range(self.layers):
            block = f"{start}h.{i}."
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{block}{norm}.weight": (e,), f"{block}{norm}.bias": (e,)}
            for name, size in {
                "attn.c_attn": (e, 3 * e), "attn.c_proj": (e, e), "mlp.c_fc": (e, 4 * e), "mlp.c_proj": (4 * e, e)
            }.items():  # fmt: skip
                shapes |= {f"{block}{name}.weight": size, f"{block}{name}.bias": size[1:]}
        return shapes | {f"{start}ln_f.weight": (e,), f"{start}ln_f.bias": (e,)}


def transformer_shapes(start: str, width: int, layers: int) -> Shapes:
    """Names and shapes of a mapper's transformer, equal in both programs."""
    shapes: Shapes = {}
    for i in range(layers):
        block = f"{start}transformer.layers.{i}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        shapes |= {
            f"{block}attn.to_queries.weight": (width, width),
            f"{block}attn.to_keys_values.weight": (2 * width, width),
            f"{block}attn.project.weight": (width, width),
            f"{block}attn.project.bias": (width,),
            f"{block}mlp.fc1.weight": (2 * width, width),
            f"{block}mlp.fc1.bias": (2 * width,),
            f"{block}mlp.fc2.weight": (width, 2 * width),
            f"{block}mlp.fc2.bias": (width,),
        }
    return shapes


def clipcap_shapes(
    mapper: str, features: int, length: int, gpt: Gpt2Sizes, *, layers: int = 8, clip_length: int = 0
) -> Shapes:
    """Names and shapes of ClipCap's state; ``mapper`` is mlp, linear or transformer."""
    e, start = gpt.width, "clip_project."
    if mapper == "mlp":
        hidden = e * length // 2
        shapes: Shapes = {f"{start}model.0.weight": (hidden, features), f"{start}model.0.bias": (hidden,)}
        shapes |= {f"{start}model.2.weight": (e * length, hidden), f"{start}model.2.bias": (e * length,)}
    elif mapper == "linear":
        shapes = {f"{start}weight": (e * length, features), f"{start}bias": (e * length,)}
    else:
        rows = (clip_length or length) * e
        shapes = {f"{start}linear.weight": (rows, features), f"{start}linear.bias": (rows,)}
        shapes |= {f"{start}prefix_const": (length, e), **transformer_shapes(start, e, layers)}
    return shapes | gpt.shapes("gpt.transformer.") | {"gpt.lm_head.weight": (gpt.vocabulary, e)}


@dataclass(frozen=True)
class PrefixAacSizes:
    """Sizes of a Prefix-AAC model, by default those released with the vocabulary of AudioCaps."""

    words: int = 7911
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    bands: int = 64
    classes: int = 527
    kernel: int = 48
    lengths: tuple[int, int] = (15, 11)
    layers: int = 4

    def shapes(self, gpt: Gpt2Sizes) -> Shapes:
        """Names and shapes of its state, constants included."""
        e, start = gpt.width, "audio_encoder."
        shapes: Shapes = {f"{start}spectrogram_extractor.stft.conv_{p}.weight": (257, 1, 512) for p in ("real", "imag")}
        shapes |= {f"{start}logmel_extractor.melW": (257, self.bands), **_norm(f"{start}bn0.", self.bands)}
        before = 1
        for i, after in enumerate(self.channels, start=1):
            block = f"{start}conv_block{i}."
            shapes |= {f"{block}conv1.weight": (after, before, 3, 3), f"{block}conv2.weight": (after, after, 3, 3)}
            shapes |= _norm(f"{block}bn1.", after) | _norm(f"{block}bn2.", after)
            before = after
        shapes |= {f"{start}fc1.weight": (before, before), f"{start}fc1.bias": (before,)}
        shapes |= {f"{start}fc_audioset.weight": (self.classes, before), f"{start}fc_audioset.bias": (self.classes,)}
        shapes |= gpt.shapes("gpt.")
        firsts = ((e, before, 1, self.bands // 2 ** (len(self.channels) - 1)), (e, 1, 1, self.kernel))
        for name, length, first in zip(("temporal", "global"), self.lengths, firsts, strict=True):
            network = f"{name}_mappingnetwork."
            shapes |= {f"{network}prefix_const": (length, e), **transformer_shapes(network, e, self.layers)}
            shapes |= {f"{network}conv.weight": first, f"{network}conv.bias": (e,), **_norm(f"{network}bn_conv.", e)}
        shapes["temporal_mappingnetwork.pos_encoder.pe"] = (5000, 1, e)
        return shapes | {"language_header.weight": (self.words, e)}


def _norm(start: str, width: int) -> Shapes:
    names = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{start}{name}": (width,) for name in names}, f"{start}num_batches_tracked": ()}


def random_weights(shapes: Shapes, seed: int = 1) -> dict[str, Tensor]:
    """Random weights for ``shapes``; constants are computed as in the published programs, tied heads are tied."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _weight(name, shape, generator) for name, shape in shapes.items()}
    if "gpt.lm_head.weight" in tensors:
        tensors["gpt.lm_head.weight"] = tensors["gpt.transformer.wte.weight"]
    return tensors


def _weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if ".stft." in name:
        phase = torch.outer(torch.arange(257.0), torch.arange(512.0)) * (2 * math.pi / 512)
        return ((phase.cos() if "real" in name else -phase.sin()) * torch.hann_window(512))[:, None]
    if name.endswith("pos_encoder.pe"):
        angle = torch.arange(shape[0])[:, None] / 10000 ** (torch.arange(0, shape[2], 2) / shape[2])
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, None]
    if name.endswith("melW"):
        return torch.rand(shape, generator=generator) / 100
    r = torch.randn(shape, generator=generator)
    if len(shape) >= 2:
        return r / math.sqrt(math.prod(shape[1:]))
    if name.endswith("running_var"):
        return (0.1 * r).abs() + 0.5
    return 1 + 0.1 * r if name.endswith(".weight") else 0.1 * r
