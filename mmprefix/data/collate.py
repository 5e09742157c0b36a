"""Samples → one batch: media and features padded to a common length; texts stay strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmprefix.data.sample import Sample
from mmprefix.types import Batch, FeatureRow, Features, Media


def collate(samples: Sequence[Sample]) -> Batch:
    """B samples that have the same branches → Batch; waveforms are padded with zeros to the longest."""
    return Batch(
        inputs={name: collate_inputs([sample.inputs[name] for sample in samples]) for name in samples[0].inputs},
        prompts=[sample.prompt for sample in samples],
        targets=[sample.targets for sample in samples],
        contexts=[sample.context for sample in samples],
        ids=[sample.id for sample in samples],
        sources=[sample.source for sample in samples],
        questions=[sample.questions for sample in samples if sample.questions is not None],
        users=[sample.user for sample in samples],
    )


def collate_inputs(values: Sequence[Tensor | FeatureRow]) -> Media | Features:
    """Inputs of one branch: tensors → Media, stored features → Features."""
    rows = [value for value in values if isinstance(value, FeatureRow)]
    assert len(rows) in (0, len(values))  # a branch is read from files or from a store
    return pad_features(rows) if rows else pad_media([value for value in values if isinstance(value, Tensor)])


def pad_features(rows: Sequence[FeatureRow]) -> Features:
    """Frames (T D) of any lengths and summaries (G,) → Features (B T D), (B G); padding is zero."""
    lengths = torch.tensor([len(row.frames) for row in rows])
    frames = pad_sequence([row.frames for row in rows], batch_first=True)
    mask = torch.arange(frames.shape[1]) < lengths[:, None]
    return Features(frames, mask, torch.stack([row.pooled for row in rows]))


def pad_media(values: Sequence[Tensor]) -> Media:
    """Stack inputs of one kind, padded with zeros to the longest.

    Waveforms (S,) → Media (B S), videos (F 3 Y X) → Media (B F 3 Y X), images (3 Y X) of one size → Media (B 3 Y X).
    """
    if values[0].ndim != 3:
        lengths = torch.tensor([len(value) for value in values])
        return Media(pad_sequence(list(values), batch_first=True), lengths)
    return Media(torch.stack(list(values)), torch.ones(len(values), dtype=torch.long))


def identity(batch: Any) -> Any:
    """``batch``, unchanged: the ``collate_fn`` of loaders whose data set gives whole batches."""
    return batch
