"""A frozen Whisper that writes down what was said, and how sure it was: text and signals for a decoder to read.

The signals stand in for those of a recogniser with a lattice (graph cost, acoustic cost, confidence, alternatives), as
device-directed speech detection uses them (Wagner et al., https://arxiv.org/abs/2403.14438), where there is none.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mmprefix.encoders.base import Preprocess
from mmprefix.encoders.whisper import Whisper
from mmprefix.generation import GenerateOptions
from mmprefix.parts import Part
from mmprefix.seq2seq import CrossDecoder
from mmprefix.types import Candidate, Media, Prefix

SIGNALS = ("avg_logprob", "no_speech_prob", "compression_ratio", "nbest_spread")


@dataclass(frozen=True)
class Heard:
    """What was said, and four numbers about it.

    ``avg_logprob``: mean log-probability of the text's tokens, its end included · ``no_speech_prob``: probability of
    ``<|nospeech|>`` in place of a text · ``compression_ratio``: bytes of the text over its bytes compressed, high where
    it repeats itself · ``nbest_spread``: mean log-probability of the best text less that of the last of the beams.
    """

    text: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    nbest_spread: float
    nbest: tuple[Candidate, ...] = ()

    @property
    def signals(self) -> list[float]:
        """The four numbers, in the order of ``SIGNALS``."""
        return [self.avg_logprob, self.no_speech_prob, self.compression_ratio, self.nbest_spread]


class Transcriber(Part, nn.Module):
    """Whisper as it is, no prefix: speech in, text out.

    Args:
        model, revision, language, dtype: as for ``CrossDecoder``.
        num_beams: beams of the search; the spread is 0 with one.
        max_new_tokens: longest text, if the model has positions for it.
    """

    trained: tuple[str, ...] = ()

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        language: str | None = "en",
        num_beams: int = 5,
        max_new_tokens: int = 100,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__()
        self.encoder = Whisper(model, revision, window="whole", dtype=dtype)
        self.decoder = CrossDecoder(model, revision, language, dtype=dtype)
        self.identity = self.decoder.identity
        room = self.decoder.positions - len(self.decoder.begins)
        most = min(max_new_tokens, room) if self.decoder.positions else max_new_tokens
        self.options = GenerateOptions(max_new_tokens=most, num_beams=num_beams, num_return=num_beams)
        self.preprocess: Preprocess = self.encoder.preprocess

    @torch.no_grad()
    def forward(self, media: Media) -> list[Heard]:
        """Samples (B S) → what was said in each."""
        count, decoder = len(media.lengths), self.decoder
        nothing = torch.zeros(count, 0, decoder.width, device=media.values.device)
        state = decoder.start(Prefix(nothing, nothing[..., 0].bool()), self.encoder(media))
        found = decoder.generate(state, [""] * count, self.options)
        return [_heard(texts, p) for texts, p in zip(found, decoder.no_speech(state).tolist(), strict=True)]


def _heard(texts: list[Candidate], silence: float) -> Heard:
    best = texts[0]
    raw = best.text.encode()
    ratio = len(raw) / len(zlib.compress(raw)) if raw else 0.0
    return Heard(best.text, best.score, silence, ratio, best.score - texts[-1].score, tuple(texts))
