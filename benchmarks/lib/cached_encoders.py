"""Small audio encoders that encode each clip once a process: for studies that train many mappers on the same clips."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmprefix.encoders.audio_input import length_mask
from mmprefix.encoders.base import Encoder, Preprocess
from mmprefix.encoders.cnn import Cnn
from mmprefix.encoders.whisper import Whisper
from mmprefix.types import Features, Media


@cache
def _cached_reader(read: Preprocess) -> Callable[..., Tensor]:
    return cache(read.__call__)


class _InMemory(Encoder):
    """Keeps waveforms and features in memory, over all runs of a process; features are equal to 1e-6."""

    _features: ClassVar[dict[tuple[str, bytes], tuple[Tensor, Tensor]]] = {}

    def cache_files(self) -> None:
        """Read each file once from now on."""
        self.preprocess = _cached_reader(self.preprocess)

    def encode(self, media: Media) -> Features:
        """Features of each clip, from memory if the very same samples were encoded before."""
        clips = [values[:length] for values, length in zip(media.values, media.lengths.tolist(), strict=True)]
        rows = [self._encode_once(clip) for clip in clips]
        frames = pad_sequence([frames for frames, _ in rows], batch_first=True)
        counts = torch.tensor([len(frames) for frames, _ in rows])
        return Features(frames, length_mask(counts, frames.shape[1]), torch.stack([summary for _, summary in rows]))

    def _encode_once(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        options = str({key: value for key, value in self.init_args.items() if key != "model"})
        key = (self.identity.sha256 + options, hashlib.sha256(clip.numpy().tobytes()).digest())
        if key not in self._features:
            alone = super().encode(Media(clip[None], torch.tensor([len(clip)])))
            self._features[key] = (alone.frames[0], alone.pooled[0])
        return self._features[key]


class CachedCnn(_InMemory, Cnn):
    """``Cnn`` that encodes each clip once."""

    def __init__(self, model: str, revision: str | None = None) -> None:
        super().__init__(model, revision)
        self.cache_files()


class CachedWhisper(_InMemory, Whisper):
    """``Whisper`` that encodes each clip once."""

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        long: Literal["join", "cut"] = "join",
        window: Literal["sound", "whole", "filled"] = "sound",
        silence: float | None = None,
        layer: int | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(model, revision, long=long, window=window, silence=silence, layer=layer, dtype=dtype)
        self.cache_files()
