"""Modality dropout: inputs are hidden at random in training, so that one model serves every subset of them.

ModDrop (Neverova et al.), https://arxiv.org/abs/1501.00102
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mmprefix.types import Batch, Features, Media, to_list


def drop_modalities(batch: Batch, probability: float, text: bool) -> Batch:
    """Hide each input of each row of ``batch`` with ``probability``, and with ``text`` its context too.

    A row that would have nothing left keeps one of its inputs, drawn at random. Draws from torch's generator.
    """
    names = list(batch.inputs)
    if not names and not text:
        return batch
    present = torch.ones(len(batch), len(names) + text, dtype=torch.bool)  # (B, inputs)
    if text:
        present[:, -1] = torch.tensor([bool(context) for context in batch.contexts])
    kept = present & (torch.rand(present.shape) >= probability)
    last = torch.rand(present.shape).masked_fill(~present, -1.0).argmax(1)  # (B,) the input that a row keeps at least
    kept[torch.arange(len(kept)), last] |= present.any(1) & ~kept.any(1)
    absent = {name: ~kept[:, column].to(_device(batch.inputs[name])) for column, name in enumerate(names)}
    contexts = batch.contexts
    if text:
        contexts = [context if keep else "" for context, keep in zip(contexts, to_list(kept[:, -1]), strict=True)]
    return replace(batch, absent=absent, contexts=contexts)


def _device(value: Media | Features) -> torch.device:
    return value.mask.device if isinstance(value, Features) else value.values.device
