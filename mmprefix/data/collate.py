"""Examples → one batch: media and features padded to a common length, texts drawn and kept as strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmprefix.types import Batch, FeatureRow, Features, Media


class Sample(NamedTuple):
    """One example, read: a waveform (S,), picture (3 Y X), video (F 3 Y X) or features a branch, and its strings.

    ``questions`` is None where nothing is asked, empty where nothing happens to be asked this time.
    """

    inputs: dict[str, Tensor | FeatureRow]
    prompt: str
    targets: list[str]
    context: str
    id: str
    media: str
    questions: list[str] | None = None


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples that have the same branches → a Batch; waveforms are padded with zeros to the longest."""
    return Batch(
        inputs={name: collate_inputs([sample.inputs[name] for sample in samples]) for name in samples[0].inputs},
        prompts=[sample.prompt for sample in samples],
        targets=[sample.targets for sample in samples],
        contexts=[sample.context for sample in samples],
        ids=[sample.id for sample in samples],
        sources=[sample.media for sample in samples],
        questions=[sample.questions for sample in samples if sample.questions is not None],
    )


def collate_inputs(values: Sequence[Tensor | FeatureRow]) -> Media | Features:
    """What was read of each input → Media; what was found in each before → Features."""
    if isinstance(values[0], FeatureRow):
        return pad_features(cast(Sequence[FeatureRow], values))
    return pad_media(cast(Sequence[Tensor], values))


def pad_features(entries: Sequence[FeatureRow]) -> Features:
    """Frames (T D) of any lengths and summaries (G,) → Features (B T D), (B G); padding is zero."""
    lengths = torch.tensor([len(entry.frames) for entry in entries])
    frames = pad_sequence([entry.frames for entry in entries], batch_first=True)
    mask = torch.arange(frames.shape[1]) < lengths[:, None]
    return Features(frames, mask, torch.stack([entry.pooled for entry in entries]))


def pad_media(values: Sequence[Tensor]) -> Media:
    """Waveforms (S,) → Media (B S), videos (F 3 Y X) → Media (B F 3 Y X), padded with zeros to the longest; pictures
    (3 Y X) of one size → Media (B 3 Y X)."""
    if values[0].ndim != 3:
        lengths = torch.tensor([len(value) for value in values])
        return Media(pad_sequence(list(values), batch_first=True), lengths)
    return Media(torch.stack(list(values)), torch.ones(len(values), dtype=torch.long))


def draw_captions(captions: Sequence[str], most: int | None, seed: list[int]) -> list[str]:
    """At most ``most`` of a row's captions, in their order."""
    if most is None or len(captions) <= most:
        return [*captions]
    drawn = np.random.default_rng(seed).choice(len(captions), most, replace=False)
    return [captions[int(number)] for number in sorted(drawn)]
