"""Checkpoints in the formats that ClipCap and Prefix-AAC release, of any size, with random weights.

Names and shapes are those of the published programs, written down here and not taken from our modules, so that an
importer can be tried without the files. Weights are of the size that lets signals through: normal over the root of the
inputs of each output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Gpt2:
    """The sizes of a GPT-2; as released, the small one."""

    layers: int = 12
    width: int = 768
    vocabulary: int = 50257
    positions: int = 1024

    def shapes(self, start: str) -> Shapes:
        """The tensors of GPT2Model behind ``start``."""
        e = self.width
        found: Shapes = {f"{start}wte.weight": (self.vocabulary, e), f"{start}wpe.weight": (self.positions, e)}
        for i in range(self.layers):
            place = f"{start}h.{i}."
            for norm in ("ln_1", "ln_2"):
                found |= {f"{place}{norm}.weight": (e,), f"{place}{norm}.bias": (e,)}
            for name, size in {
                "attn.c_attn": (e, 3 * e), "attn.c_proj": (e, e), "mlp.c_fc": (e, 4 * e), "mlp.c_proj": (4 * e, e)
            }.items():  # fmt: skip
                found |= {f"{place}{name}.weight": size, f"{place}{name}.bias": size[1:]}
        return found | {f"{start}ln_f.weight": (e,), f"{start}ln_f.bias": (e,)}


def transformer(start: str, width: int, layers: int) -> Shapes:
    """The mapper's transformer, the same in both programs."""
    found: Shapes = {}
    for i in range(layers):
        place = f"{start}transformer.layers.{i}."
        for norm in ("norm1", "norm2"):
            found |= {f"{place}{norm}.weight": (width,), f"{place}{norm}.bias": (width,)}
        found |= {
            f"{place}attn.to_queries.weight": (width, width),
            f"{place}attn.to_keys_values.weight": (2 * width, width),
            f"{place}attn.project.weight": (width, width),
            f"{place}attn.project.bias": (width,),
            f"{place}mlp.fc1.weight": (2 * width, width),
            f"{place}mlp.fc1.bias": (2 * width,),
            f"{place}mlp.fc2.weight": (width, 2 * width),
            f"{place}mlp.fc2.bias": (width,),
        }
    return found


def clipcap(mapper: str, features: int, length: int, gpt: Gpt2, layers: int = 8, clip_length: int = 0) -> Shapes:
    """ClipCap's state: ``mapper`` is mlp, linear or transformer."""
    e, start = gpt.width, "clip_project."
    if mapper == "mlp":
        hidden = e * length // 2
        found: Shapes = {f"{start}model.0.weight": (hidden, features), f"{start}model.0.bias": (hidden,)}
        found |= {f"{start}model.2.weight": (e * length, hidden), f"{start}model.2.bias": (e * length,)}
    elif mapper == "linear":
        found = {f"{start}weight": (e * length, features), f"{start}bias": (e * length,)}
    else:
        rows = (clip_length or length) * e
        found = {f"{start}linear.weight": (rows, features), f"{start}linear.bias": (rows,)}
        found |= {f"{start}prefix_const": (length, e), **transformer(start, e, layers)}
    return found | gpt.shapes("gpt.transformer.") | {"gpt.lm_head.weight": (gpt.vocabulary, e)}


@dataclass(frozen=True)
class Aac:
    """The sizes of a Prefix-AAC model; as released, with the vocabulary of AudioCaps."""

    words: int = 7911
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    bands: int = 64
    classes: int = 527
    kernel: int = 48
    lengths: tuple[int, int] = (15, 11)
    layers: int = 4

    def shapes(self, gpt: Gpt2) -> Shapes:
        """The names and shapes of its state, constants included."""
        e, start = gpt.width, "audio_encoder."
        found: Shapes = {f"{start}spectrogram_extractor.stft.conv_{p}.weight": (257, 1, 512) for p in ("real", "imag")}
        found |= {f"{start}logmel_extractor.melW": (257, self.bands), **_norm(f"{start}bn0.", self.bands)}
        before = 1
        for i, after in enumerate(self.channels, start=1):
            place = f"{start}conv_block{i}."
            found |= {f"{place}conv1.weight": (after, before, 3, 3), f"{place}conv2.weight": (after, after, 3, 3)}
            found |= _norm(f"{place}bn1.", after) | _norm(f"{place}bn2.", after)
            before = after
        found |= {f"{start}fc1.weight": (before, before), f"{start}fc1.bias": (before,)}
        found |= {f"{start}fc_audioset.weight": (self.classes, before), f"{start}fc_audioset.bias": (self.classes,)}
        found |= gpt.shapes("gpt.")
        firsts = ((e, before, 1, self.bands // 2 ** (len(self.channels) - 1)), (e, 1, 1, self.kernel))
        for name, length, first in zip(("temporal", "global"), self.lengths, firsts, strict=True):
            place = f"{name}_mappingnetwork."
            found |= {f"{place}prefix_const": (length, e), **transformer(place, e, self.layers)}
            found |= {f"{place}conv.weight": first, f"{place}conv.bias": (e,), **_norm(f"{place}bn_conv.", e)}
        found["temporal_mappingnetwork.pos_encoder.pe"] = (5000, 1, e)
        return found | {"language_header.weight": (self.words, e)}


def _norm(start: str, width: int) -> Shapes:
    names = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{start}{name}": (width,) for name in names}, f"{start}num_batches_tracked": ()}


def weights(shapes: Shapes, seed: int = 1) -> dict[str, Tensor]:
    """Random weights for ``shapes``; constants as the published programs compute them; heads tied where they are."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: _weight(name, shape, generator) for name, shape in shapes.items()}
    if "gpt.lm_head.weight" in found:
        found["gpt.lm_head.weight"] = found["gpt.transformer.wte.weight"]
    return found


def _weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if ".stft." in name:
        turn = torch.outer(torch.arange(257.0), torch.arange(512.0)) * (2 * math.pi / 512)
        return ((turn.cos() if "real" in name else -turn.sin()) * torch.hann_window(512))[:, None]
    if name.endswith("pos_encoder.pe"):
        place = torch.arange(shape[0])[:, None] / 10000 ** (torch.arange(0, shape[2], 2) / shape[2])
        return torch.stack([place.sin(), place.cos()], dim=-1).flatten(1)[:, None]
    if name.endswith("melW"):
        return torch.rand(shape, generator=generator) / 100
    r = torch.randn(shape, generator=generator)
    if len(shape) >= 2:
        return r / math.sqrt(math.prod(shape[1:]))
    if name.endswith("running_var"):
        return (0.1 * r).abs() + 0.5
    return 1 + 0.1 * r if name.endswith(".weight") else 0.1 * r
