"""Map from tensors of our models to their names and shapes in another program's checkpoint: checked, then copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.weights import untrusted

_BUFFERS = (".attn.bias", ".attn.masked_bias")  # masks that older versions of Transformers saved among the weights


@dataclass(frozen=True)
class TensorMap:
    """Tensor ``own`` of a model, with its name and shape in a file."""

    name: str
    shape: tuple[int, ...]
    own: Tensor


def tensor_maps(prefix: str, own: Mapping[str, Tensor]) -> list[TensorMap]:
    """Maps of tensors whose names in a file are ours with ``prefix`` before them, and whose shapes are equal."""
    return [TensorMap(prefix + name, tuple(value.shape), value) for name, value in own.items()]


def language_model_maps(decoder: ComposedDecoder, whole: bool) -> list[TensorMap]:
    """Maps of a decoder's language model; ``whole``: with its output head, as ClipCap saves it."""
    lm = decoder.lm if whole else decoder.lm.base_model
    return tensor_maps("gpt.", lm.state_dict())


def check(maps: Iterable[TensorMap], tensors: Mapping[str, Tensor], file: str, model: str) -> None:
    """Raise InputError with the name of the first tensor that is missing, unknown or has another shape."""
    untrusted.compare({entry.name: entry.shape for entry in maps}, tensors, file, model)


@torch.no_grad()
def fill(maps: Iterable[TensorMap], tensors: Mapping[str, Tensor]) -> None:
    """Copy checked ``tensors`` into the model."""
    for entry in maps:
        entry.own.copy_(tensors[entry.name].reshape(entry.own.shape))


def is_equal(maps: Iterable[TensorMap], tensors: Mapping[str, Tensor]) -> bool:
    """True if the tensors of a file are bit for bit those of the model."""
    return all(torch.equal(entry.own, tensors[entry.name].to(entry.own.dtype)) for entry in maps)


def without_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without attention masks saved among them."""
    return {name: value for name, value in tensors.items() if not (name.startswith("gpt.") and name.endswith(_BUFFERS))}
