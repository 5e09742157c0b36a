"""Our tensors as another program's checkpoint calls and shapes them: checked first, filled then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.weights import untrusted

_BUFFERS = (".attn.bias", ".attn.masked_bias")  # masks that older versions of Transformers saved among the weights


@dataclass(frozen=True)
class TensorMap:
    """A tensor of ours that is filled from a file: what it is called there, and the shape that it has there."""

    name: str
    shape: tuple[int, ...]
    own: Tensor


def slots(prefix: str, own: Mapping[str, Tensor]) -> list[TensorMap]:
    """Slots for tensors that have the same shape in a file, and the same name behind ``prefix``."""
    return [TensorMap(prefix + name, tuple(value.shape), value) for name, value in own.items()]


def check(wanted: Iterable[TensorMap], given: Mapping[str, Tensor], file: str, model: str) -> None:
    """Refuses, by name, the first tensor that is missing, unknown or misshapen."""
    untrusted.compare({slot.name: slot.shape for slot in wanted}, given, file, model)


@torch.no_grad()
def fill(wanted: Iterable[TensorMap], given: Mapping[str, Tensor]) -> None:
    """Copies what was checked."""
    for slot in wanted:
        slot.own.copy_(given[slot.name].reshape(slot.own.shape))


def language_model(decoder: ComposedDecoder, whole: bool) -> list[TensorMap]:
    """The slots of a decoder's language model; ``whole``: with its output head, as ClipCap saves it."""
    lm = decoder.lm if whole else decoder.lm.base_model
    return slots("gpt.", cast(dict[str, Tensor], lm.state_dict()))


def same(wanted: Iterable[TensorMap], given: Mapping[str, Tensor]) -> bool:
    """Whether a file's tensors are those that are there already, to the bit."""
    return all(torch.equal(slot.own, given[slot.name].to(slot.own.dtype)) for slot in wanted)


def without_buffers(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without masks that were saved with them."""
    return {name: value for name, value in given.items() if not (name.startswith("gpt.") and name.endswith(_BUFFERS))}
