"""Addition of a test-time method to the prefix of a model, the same for all inputs of a batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.model import PrefixLM
from mmprefix.types import AnyPrefix, Batch, DeepPrefix, Prefix


@torch.no_grad()
def prefix_of(model: PrefixLM, batch: Batch) -> Prefix | DeepPrefix:
    """Prefix of each input. Raises InputError for one of two kinds, and for one without positions."""
    prefix: AnyPrefix = model.build_prefix(batch.inputs, batch.absent, len(batch))
    if not isinstance(prefix, Prefix | DeepPrefix) or not prefix.mask.shape[1]:
        raise InputError("model.prefix: what is learned at the test is added to embeddings alone or to keys and values "
                         "alone, of a position at least; this model's prefix is another")  # fmt: skip
    return prefix


def no_addition(prefix: Prefix | DeepPrefix) -> Tensor:
    """Zeros (1 P E) or (2 L 1 H P K) that are to be trained."""
    if isinstance(prefix, Prefix):
        return torch.zeros_like(prefix.embeds[:1]).requires_grad_()
    return torch.zeros_like(torch.stack([prefix.keys[:, :1], prefix.values[:, :1]])).requires_grad_()


def moved(prefix: Prefix | DeepPrefix, psi: Tensor) -> Prefix | DeepPrefix:
    """Prefix plus psi, the same for all inputs."""
    if isinstance(prefix, Prefix):
        return replace(prefix, embeds=prefix.embeds + psi)
    return replace(prefix, keys=prefix.keys + psi[0], values=prefix.values + psi[1])
