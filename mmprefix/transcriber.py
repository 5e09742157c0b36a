"""Speech recognition by a frozen Whisper: transcripts and their confidence signals, as input for a decoder.

The signals replace those of a recognizer with a lattice (graph cost, acoustic cost, confidence, alternatives) in
device-directed speech detection (Wagner et al., https://arxiv.org/abs/2403.14438).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

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
from mmprefix.types import Candidate, Features, Media, Prefix, to_list

_MAX_WINDOWS = 16  # windows of a batch
_REPETITIVE = 2.4  # compression ratio from which Whisper's own decoding tries again


@dataclass(frozen=True)
class Transcript:
    """Transcript and four confidence signals.

    ``avg_logprob``: mean log-probability of the text's tokens, end of text included · ``no_speech_prob``: probability
    of ``<|nospeech|>`` in place of a text · ``compression_ratio``: bytes of the text over its compressed bytes, high
    for a repetitive text · ``nbest_spread``: mean log-probability of the best text minus that of the last beam.
    """

    text: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    nbest_spread: float
    nbest: tuple[Candidate, ...] = ()

    @property
    def signals(self) -> list[float]:
        """Four signals in the order of ``mmprefix.encoders.signals.SIGNALS``."""
        return [getattr(self, name) for name in SIGNALS]


class _PlainWhisperDecoder(CrossDecoder):
    """Decoder of Whisper that suppresses the tokens in its generation_config.json, as Whisper's own decoding does."""

    def logits_processors(self, options: GenerateOptions, stops: Tensor) -> list[LogitsProcessor]:
        """Suppress tokens, renormalize, then apply the processors of every decoder."""
        config = self.lm.generation_config
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
    """Whisper without a prefix: speech to text.

    A clip longer than Whisper's window (30 s) is transcribed window by window; its signals are the means over windows.

    Args:
        model: a folder, ``mmprefix:NAME`` or a hub name.
        revision: the hub's branch, tag or commit.
        language: Whisper's code for it; None for a model of one language.
        num_beams: beams of the search; with one beam ``nbest_spread`` is 0.
        max_new_tokens: maximum tokens per window, at most the positions that the model has.
        silence: seconds of silence that the encoder reads behind the sound; None: all of the window (see ``Whisper``).
            With too little of it a text may repeat itself; one that does is transcribed again with all of the window.
        dtype: dtype of the weights.
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
        silence: float | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__()
        self.encoder = Whisper(model, revision, window="whole", silence=silence, dtype=dtype)
        self.decoder = _PlainWhisperDecoder(model, revision, language=language, dtype=dtype)
        self.identity = self.decoder.identity
        room = self.decoder.max_positions - len(self.decoder.begins)
        max_new_tokens = min(max_new_tokens, room) if self.decoder.max_positions else max_new_tokens
        self.options = GenerateOptions(max_new_tokens=max_new_tokens, num_beams=num_beams, num_return=num_beams)
        self.preprocess: Preprocess = self.encoder.preprocess

    @torch.no_grad()
    def forward(self, media: Media) -> list[Transcript]:
        """Samples (B S) → transcript of each clip."""
        windows = split_windows(media, self.encoder.size, join=True)
        values, lengths = torch.split(windows.values, _MAX_WINDOWS), torch.split(windows.lengths, _MAX_WINDOWS)
        parts = [part for batch in map(Media, values, lengths) for part in self._transcribe(batch)]
        by_clip: list[list[Transcript]] = [[] for _ in media.lengths]
        for owner, part in zip(to_list(windows.owner), parts, strict=True):
            by_clip[int(owner)].append(part)
        return [_join(own) for own in by_clip]

    def _transcribe(self, media: Media) -> list[Transcript]:
        """Samples (N S) of at most one window → transcript of each."""
        transcripts = self._decode(self.encoder(media), len(media.lengths))
        again = [n for n, each in enumerate(transcripts) if each.compression_ratio > _REPETITIVE]
        if self.encoder.silence is not None and again:
            windows = Media(media.values[again], media.lengths[again])
            whole = self._decode(self.encoder.encode_whole_windows(windows), len(again))
            for number, transcript in zip(again, whole, strict=True):
                transcripts[number] = transcript
        return transcripts

    def _decode(self, features: Features, count: int) -> list[Transcript]:
        """Features of N windows → transcript of each."""
        decoder = self.decoder
        empty = torch.zeros(count, 0, decoder.width, device=features.mask.device)
        state = decoder.prefill(Prefix(empty, empty[..., 0].bool()), features)
        groups = decoder.generate(state, [""] * count, self.options)
        return [_transcript(texts, p) for texts, p in zip(groups, to_list(decoder.no_speech(state)), strict=True)]


def _transcript(texts: list[Candidate], no_speech_prob: float) -> Transcript:
    """Transcript of a window from its candidates, the best first."""
    best = texts[0]
    raw = best.text.encode()
    ratio = len(raw) / len(zlib.compress(raw)) if raw else 0.0
    return Transcript(best.text, best.score, no_speech_prob, ratio, best.score - texts[-1].score, tuple(texts))


def _join(parts: list[Transcript]) -> Transcript:
    """Transcript of a clip from those of its windows."""
    if len(parts) == 1:
        return parts[0]
    text = " ".join(part.text for part in parts if part.text)
    signals = [sum(values) / len(parts) for values in zip(*(part.signals for part in parts), strict=True)]
    return Transcript(text, *signals, nbest=(Candidate(text, signals[0]),))
