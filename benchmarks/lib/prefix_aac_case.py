"""Features, mappers and vocabulary of a training step of recipes/prefix_aac_audiocaps.yaml with cached features.

Frames (B 15 4096) like Cnn14's of ten seconds, none below zero, and a summary (B 527) of probabilities, both random;
two mappers, 15 positions from frames and 11 from the summary; whole words, which the language model reads and a trained
head writes. Batch normalisation takes the statistics of the batch, as in training. Dropout is left out, so that all
variants compute the same.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from mmprefix.decoders.word_level import END
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_aac import PrefixAAC
from mmprefix.types import Features

FRAMES, DIM, CLASSES = 15, 4096, 527


def features(random: np.random.Generator, count: int) -> Features:
    """Random features of ``count`` inputs, all frames real."""
    frames = random.standard_normal((count, FRAMES, DIM), dtype=np.float32).clip(min=0)
    summary = 1 / (1 + np.exp(4 - 2 * random.standard_normal((count, CLASSES), dtype=np.float32)))
    real = torch.ones(count, FRAMES, dtype=torch.bool)
    return Features(torch.from_numpy(frames), real, torch.from_numpy(summary))


def mapper(width: int) -> Parallel:
    """The two mappers for a decoder of ``width``, in training mode."""
    frames = partial(PrefixAAC, reads="frames", length=15, dropout=0.0)
    summary = partial(PrefixAAC, reads="summary", length=11)
    return Parallel(Sizes(DIM, CLASSES, width), mappers=[frames, summary])


def vocabulary(words: int) -> list[str]:
    """Words numbered as ``random_gpt2.save_gpt2`` numbers tokens: word i is "w<i>", the last one ends a text."""
    return [*(f"w{i}" for i in range(words - 1)), END]
