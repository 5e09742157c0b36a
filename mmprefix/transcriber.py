"""A frozen Whisper as a recogniser: the transcript of speech, and signals of its confidence, for a decoder to read.

The signals stand in for those of a recogniser with a lattice (graph cost, acoustic cost, confidence, alternatives), as
device-directed speech detection uses them (Wagner et al., https://arxiv.org/abs/2403.14438), where there is none.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.encoders.audio_input import split_windows
from mmprefix.encoders.base import Preprocess
from mmprefix.encoders.signals import SIGNALS
from mmprefix.encoders.whisper import Whisper
from mmprefix.generation.next_tokens import LogitsProcessor, SuppressTokens, renormalize
from mmprefix.generation.options import GenerateOptions
from mmprefix.parts import Part
from mmprefix.types import Candidate, Media, Prefix

_MAX_WINDOWS = 16  # windows that are transcribed in one batch


@dataclass(frozen=True)
class Transcript:
    """A transcript, and four numbers about it.

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
        """The four numbers, in the order of ``mmprefix.encoders.signals.SIGNALS``."""
        return [getattr(self, name) for name in SIGNALS]


class _PlainWhisperDecoder(CrossDecoder):
    """Whisper's decoder without the tokens that its generation_config.json suppresses, as in Whisper's own decoding."""

    def logits_processors(self, options: GenerateOptions, stops: Tensor) -> list[LogitsProcessor]:
        """Those of every decoder, behind the suppression of tokens; the remaining probabilities sum to 1."""
        config = cast(Any, self.lm).generation_config
        always, first = (
            torch.tensor(ids or [], dtype=torch.long, device=stops.device)
            for ids in (config.suppress_tokens, config.begin_suppress_tokens)
        )
        return [
            SuppressTokens(always),
            SuppressTokens(first, until=1),
            renormalize,
            *super().logits_processors(options, stops),
        ]


class Transcriber(Part, nn.Module):
    """Whisper as it is, no prefix: speech in, text out.

    A clip longer than Whisper's window (30 s) is transcribed window by window; its numbers are the means of theirs.

    Args:
        model, revision, language, dtype: as for ``CrossDecoder``.
        num_beams: beams of the search; the spread is 0 with one.
        max_new_tokens: longest text of a window, if the model has positions for it.
    """

    trained: tuple[str, ...] = ()

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        language: str | None = "en",
        num_beams: int = 5,
        max_new_tokens: int = 100,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__()
        self.encoder = Whisper(model, revision, window="whole", dtype=dtype)
        self.decoder = _PlainWhisperDecoder(model, revision, language=language, dtype=dtype)
        self.identity = self.decoder.identity
        room = self.decoder.max_positions - len(self.decoder.begins)
        max_new_tokens = min(max_new_tokens, room) if self.decoder.max_positions else max_new_tokens
        self.options = GenerateOptions(max_new_tokens=max_new_tokens, num_beams=num_beams, num_return=num_beams)
        self.preprocess: Preprocess = self.encoder.preprocess

    @torch.no_grad()
    def forward(self, media: Media) -> list[Transcript]:
        """Samples (B S) → the transcript of each."""
        cut = split_windows(media, self.encoder.size, join=True)
        batches = zip(cut.values.split(_MAX_WINDOWS), cut.lengths.split(_MAX_WINDOWS), strict=True)
        parts = [part for values, lengths in batches for part in self._transcribe(Media(values, lengths))]
        by_clip: list[list[Transcript]] = [[] for _ in media.lengths]
        for owner, part in zip(cut.owner.tolist(), parts, strict=True):
            by_clip[owner].append(part)
        return [_joined(own) for own in by_clip]

    def _transcribe(self, media: Media) -> list[Transcript]:
        """Samples (N S) of one window or less → the transcript of each."""
        count, decoder = len(media.lengths), self.decoder
        empty = torch.zeros(count, 0, decoder.width, device=media.values.device)
        state = decoder.prefill(Prefix(empty, empty[..., 0].bool()), self.encoder(media))
        groups = decoder.generate(state, [""] * count, self.options)
        return [_transcript(texts, p) for texts, p in zip(groups, decoder.no_speech(state).tolist(), strict=True)]


def _transcript(texts: list[Candidate], no_speech_prob: float) -> Transcript:
    best = texts[0]
    raw = best.text.encode()
    ratio = len(raw) / len(zlib.compress(raw)) if raw else 0.0
    return Transcript(best.text, best.score, no_speech_prob, ratio, best.score - texts[-1].score, tuple(texts))


def _joined(parts: list[Transcript]) -> Transcript:
    """The transcript of a clip, from those of its windows."""
    if len(parts) == 1:
        return parts[0]
    text = " ".join(part.text for part in parts if part.text)
    numbers = [sum(values) / len(parts) for values in zip(*(part.signals for part in parts), strict=True)]
    return Transcript(text, *numbers, nbest=(Candidate(text, numbers[0]),))
