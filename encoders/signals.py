"""Numbers measured on an utterance by another program, such as a recogniser's costs and confidences.

Device-directed speech detection reads four: graph cost, acoustic cost, word confidence, and alternatives at a position
(Wagner et al., https://arxiv.org/abs/2403.14438). ``mmprefix transcribe`` writes four others, of Whisper.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.media.numbers import read_numbers
from mmprefix.media.source import Source, name_of
from mmprefix.types import Features, Media
from mmprefix.weights.source import Provenance

SIGNALS = ("avg_logprob", "no_speech_prob", "compression_ratio", "nbest_spread")  # of Whisper


class _Read:
    """Preprocessing of ``Signals``: a row of numbers in a file or in memory → (S,), float32."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """Numbers in the order of their names; InputError for another count of them."""
        values = torch.from_numpy(read_numbers(source))
        if len(values) != len(self.names):
            raise InputError(
                f"{name_of(source)}: holds {len(values)} numbers, expected {len(self.names)}: {', '.join(self.names)}"
            )
        return values


class Signals(Encoder):
    """Summary (B G) that holds the numbers unchanged; there are no frames.

    Args:
        names: names of the numbers, in their order; by default those of ``mmprefix transcribe``.
    """

    input_kind = "signals"

    def __init__(self, names: list[str] | None = None) -> None:
        super().__init__()
        self.names = names or list(SIGNALS)
        self.dim, self.pooled_dim = 0, len(self.names)
        self.preprocess = _Read(self.names)
        digest = hashlib.sha256("\n".join(self.names).encode()).hexdigest()
        self.identity = Provenance("signals", None, digest)
        self.freeze()

    def encode(self, media: Media) -> Features:
        """Numbers (B S) → summary (B G), G = S."""
        values = media.values
        return replace(Features.empty(len(values), values.device), pooled=values)
