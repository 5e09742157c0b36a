"""Batches of tones and signals for models over a ``SpeechSystem``."""

from __future__ import annotations

from typing import Any

import torch

from mmprefix.data.collate import pad_media
from mmprefix.types import Batch, Features, Media
from tiny.speech_system import PHRASES, tone

TARGETS = [["a dog", "rain falls"], ["the cat."], ["a bell"], ["the old roof", "some rain"]]


def tone_media(count: int = 4) -> Media:
    """Up to four tones of different lengths, padded (B S)."""
    return pad_media([torch.from_numpy(tone(pitch, 0.4 + 0.3 * n)) for n, pitch in enumerate(PHRASES.values())][:count])


def signal_media(count: int = 4) -> Media:
    """Two numbers for each input (B 2)."""
    return pad_media([torch.tensor([n - 1.5, 0.5 * n]) for n in range(count)])


def make_batch(inputs: dict[str, Media | Features], prompts: list[str], **more: Any) -> Batch:
    """Batch of ``inputs`` with ``prompts`` and the first of ``TARGETS``; ``more`` are further fields."""
    count = len(prompts)
    fields = {"targets": TARGETS[:count], "contexts": [""] * count, "ids": [str(n) for n in range(count)]}
    return Batch(**{"inputs": inputs, "prompts": prompts, **fields, **more})


def without_padding(media: Media, row: int) -> Media:
    """Input ``row`` alone, without its padding."""
    return Media(media.values[row : row + 1, : int(media.lengths[row])], media.lengths[row : row + 1])
