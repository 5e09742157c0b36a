"""The small sound encoder, hearing each clip only once: for scripts that train many mappers on the same few clips."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmprefix.encoders.cnn import Cnn
from mmprefix.encoders.waveform import ReadWaveform, real
from mmprefix.types import Features, Media


class Remembered(Cnn):
    """``Cnn`` whose files and features are kept in memory, over all runs of a process; the same features to 1e-6."""

    _kept: ClassVar[dict[tuple[str, bytes], tuple[Tensor, Tensor]]] = {}
    _read: ClassVar[dict[ReadWaveform, Any]] = {}

    def __init__(self, model: str, revision: str | None = None) -> None:
        super().__init__(model, revision)
        read = cast(ReadWaveform, self.preprocess)
        self.preprocess = self._read.setdefault(read, cache(read.__call__))

    def encode(self, media: Media) -> Features:
        """As ``Cnn``, from memory where the very same samples were heard before."""
        rows = [values[:length] for values, length in zip(media.values, media.lengths.tolist(), strict=True)]
        found = [self._once(row) for row in rows]
        frames = pad_sequence([one for one, _ in found], batch_first=True)
        counts = torch.tensor([len(one) for one, _ in found])
        return Features(frames, real(counts, frames.shape[1]), torch.stack([summary for _, summary in found]))

    def _once(self, row: Tensor) -> tuple[Tensor, Tensor]:
        key = (self.identity.sha256, hashlib.sha256(row.numpy().tobytes()).digest())
        if key not in self._kept:
            alone = super().encode(Media(row[None], torch.tensor([len(row)])))
            self._kept[key] = (alone.frames[0], alone.pooled[0])
        return self._kept[key]
