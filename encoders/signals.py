"""Numbers about an utterance that something else measured: a recogniser's costs and confidences.

Device-directed speech detection reads four: graph cost, acoustic cost, word confidence, and alternatives at a position
(Wagner et al., https://arxiv.org/abs/2403.14438). ``mmprefix transcribe`` writes four others that Whisper gives.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.media.numbers import read_numbers
from mmprefix.media.source import Source, name_of
from mmprefix.types import Features, Media
from mmprefix.weights.source import Provenance

SIGNALS = ("avg_logprob", "no_speech_prob", "compression_ratio", "nbest_spread")  # what Whisper gives


class _Read:
    """A row of numbers in a file or in memory → (S,), float32, of the right length."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """The numbers, in the order of their names; InputError for another count of them."""
        values = torch.from_numpy(read_numbers(source))
        if len(values) != len(self.names):
            raise InputError(
                f"{name_of(source)}: holds {len(values)} numbers, expected {len(self.names)}: {', '.join(self.names)}"
            )
        return values


class Signals(Encoder):
    """Numbers as they are become the summary (B G); there are no frames.

    Args:
        names: what the numbers are, in their order; by default what ``mmprefix transcribe`` writes.
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
        frames = values.new_zeros(len(values), 0, 0)
        return Features(frames, torch.zeros(len(values), 0, dtype=torch.bool, device=values.device), values)
