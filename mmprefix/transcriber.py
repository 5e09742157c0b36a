"""Speech recognition by a frozen Whisper: transcripts and their confidence signals, as input for a decoder.

The signals replace those of a recognizer with a lattice (graph cost, acoustic cost, confidence, alternatives) in
device-directed speech detection (Wagner et al., https://arxiv.org/abs/2403.14438).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.decoders.text_codec import WhisperCodec
from mmprefix.encoders.audio_input import split_windows
from mmprefix.encoders.base import Preprocess
from mmprefix.encoders.signals import SIGNALS
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.generation.next_tokens import LogitsProcessor, SuppressTokens, renormalize
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.strategies import Hypothesis
from mmprefix.generation.timestamps import TimestampRules, finished_part
from mmprefix.kv_cache.state import State
from mmprefix.parts import Part
from mmprefix.types import Candidate, Features, Media, Prefix, all_real, to_list

_MAX_WINDOWS = 16  # windows of a batch
_REPETITIVE = 2.4  # compression ratio from which Whisper's own decoding tries again


@dataclass(frozen=True)
class Transcript:
    """Transcript and four confidence signals.

    ``avg_logprob``: mean log-probability of the text's tokens, end of text included · ``no_speech_prob``: probability
    of ``<|nospeech|>`` in place of a text · ``compression_ratio``: bytes of the text over its compressed bytes, high
    for a repetitive text · ``nbest_spread``: mean log-probability of the best text minus that of the last beam.
    ``language`` is the code of the language that was detected, None where it was not asked for.
    """

    text: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    nbest_spread: float
    nbest: tuple[Candidate, ...] = ()
    language: str | None = None

    @property
    def signals(self) -> list[float]:
        """Four signals in the order of ``mmprefix.encoders.signals.SIGNALS``."""
        return [getattr(self, name) for name in SIGNALS]


@dataclass(frozen=True)
class _TimedOptions(GenerateOptions):
    """Options of a search that writes timestamps."""


class _PlainWhisperDecoder(CrossDecoder):
    """Decoder of Whisper that suppresses the tokens in its generation_config.json, as Whisper's own decoding does."""

    @property
    def first_timestamp(self) -> int | None:
        """Id of ``<|0.00|>``; None for a model that lacks a timestamp for each of its frames."""
        first, config = self.begins[-1] + 1, self.lm.config
        return first if first + config.max_source_positions < config.vocab_size else None

    def logits_processors(self, options: GenerateOptions, stops: Tensor) -> list[LogitsProcessor]:
        """Suppress tokens, renormalize, then apply the processors of every decoder and the rules of timestamps."""
        config, first = self.lm.generation_config, self.first_timestamp
        always, at_first = (
            torch.tensor(ids or [], dtype=torch.long, device=stops.device)
            for ids in (config.suppress_tokens, config.begin_suppress_tokens)
        )
        processors: list[LogitsProcessor] = [
            SuppressTokens(always),
            SuppressTokens(at_first, until=1),
            renormalize,
            *super().logits_processors(options, stops),
        ]
        if isinstance(options, _TimedOptions) and first is not None:
            latest = getattr(config, "max_initial_timestamp_index", None)
            processors.append(TimestampRules(first, int(stops.min()), latest))
        return processors

    @torch.no_grad()
    def languages(self, state: State) -> list[str]:
        """Code of the likeliest language of each input of a prefilled ``state``.

        Raises InputError for a model that lists no languages.
        """
        known: dict[str, int] = getattr(self.lm.generation_config, "lang_to_id", None) or {}
        if not known:
            raise InputError(f"language 'auto': {self.identity.source!r} lists no languages; give one, or null")
        started = self.append_ids(state, [self.begins[:1] for _ in state.mask])
        logits = self.logits(self.language_model.last_hidden(started))[:, list(known.values())]
        words = list(known)
        return [words[int(n)].removeprefix("<|").removesuffix("|>") for n in to_list(logits.argmax(1))]

    def begins_in(self, language: str | None, timed: bool) -> list[int]:
        """Tokens that precede a text in a ``language`` that was detected (None: that of the options)."""
        begins = self.begins
        if language is not None and isinstance(self.codec, WhisperCodec):
            begins = [begins[0], *self.codec.special_ids([f"<|{language}|>"]), *begins[-2:]]
        return begins[:-1] if timed else begins


class Transcriber(Part, nn.Module):
    """Whisper without a prefix: speech to text.

    A clip longer than Whisper's window (30 s) is written with timestamps; each window begins where the last finished
    sentence of the window before ended (sequential long-form transcription, section 4.5 of Whisper's paper, without
    its fallbacks). A model without timestamps reads window by window. Signals are means over windows.

    Args:
        model: a folder, ``mmprefix:NAME`` or a hub name.
        revision: the hub's branch, tag or commit.
        language: its code or English name; ``auto``: the likeliest for each clip; None: as the model's generation
            config says, none for a model of one language. A model of English alone (``whisper-base.en``) needs none.
        task: transcribe, or translate into English.
        num_beams: beams of the search; with one beam ``nbest_spread`` is 0.
        max_new_tokens: maximum tokens per window; None: as many as the model has positions.
        silence: seconds of silence that the encoder reads behind the sound of a clip of one window, filled up with
            silence that was encoded before; a text that repeats itself all the same is transcribed again with all of
            the window. None: all of the window (see ``Whisper``).
        dtype: dtype of the weights.
    """

    trained: tuple[str, ...] = ()

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        language: str | None = "en",
        task: Literal["transcribe", "translate"] = "transcribe",
        num_beams: int = 5,
        max_new_tokens: int | None = None,
        silence: float | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__()
        self.encoder = Whisper(model, revision, window="filled", silence=silence, dtype=dtype)
        known = None if language == "auto" else language
        self.decoder = _PlainWhisperDecoder(model, revision, language=known, task=task, dtype=dtype)
        codec = self.decoder.codec
        self.detects = language == "auto" and not (isinstance(codec, WhisperCodec) and codec.english_only)
        self.identity = self.decoder.identity
        room = self.decoder.max_positions - len(self.decoder.begins) - self.detects
        most = room if max_new_tokens is None else min(max_new_tokens, room)
        self.options = GenerateOptions(max_new_tokens=most, num_beams=num_beams, num_return=num_beams)
        self.timed_options = _TimedOptions(max_new_tokens=most, num_beams=num_beams, num_return=num_beams)
        self.frames = self.encoder.size // self.encoder.logmel.hop  # of a window's spectrogram
        self.preprocess: Preprocess = self.encoder.preprocess

    @torch.no_grad()
    def forward(self, media: Media) -> list[Transcript]:
        """Samples (B S) → transcript of each clip."""
        timestamp = self.decoder.first_timestamp
        if timestamp is None:
            return self._by_window(media)
        long = media.lengths // self.encoder.logmel.hop > self.frames
        by_window = iter(self._by_window(Media(media.values[~long], media.lengths[~long].clamp(max=self.encoder.size))))
        clips = zip(media.values[long], to_list(media.lengths[long]), strict=True)
        in_sequence = iter(self._in_sequence([values[: int(length)] for values, length in clips], timestamp))
        return [next(in_sequence if each else by_window) for each in to_list(long)]

    def _by_window(self, media: Media) -> list[Transcript]:
        """Samples (B S) → transcript of each clip; windows are read apart and written without timestamps."""
        if not len(media.lengths):
            return []
        windows = split_windows(media, self.encoder.size, join=True)
        values, lengths = torch.split(windows.values, _MAX_WINDOWS), torch.split(windows.lengths, _MAX_WINDOWS)
        parts = [part for batch in map(Media, values, lengths) for part in self._transcribe(batch)]
        by_clip: list[list[Transcript]] = [[] for _ in media.lengths]
        for owner, part in zip(to_list(windows.owner), parts, strict=True):
            by_clip[int(owner)].append(part)
        return [
            own[0] if len(own) == 1 else _join(" ".join(part.text for part in own if part.text), own) for own in by_clip
        ]

    def _transcribe(self, media: Media) -> list[Transcript]:
        """Samples (N S) of at most one window → transcript of each."""
        transcripts = self._decode(self.encoder(media))
        again = [n for n, each in enumerate(transcripts) if each.compression_ratio > _REPETITIVE]
        if self.encoder.silence is not None and again:
            windows = Media(media.values[again], media.lengths[again])
            whole = self._decode(self.encoder.encode_whole_windows(windows))
            for number, transcript in zip(again, whole, strict=True):
                transcripts[number] = transcript
        return transcripts

    def _decode(self, features: Features) -> list[Transcript]:
        """Features of N windows → transcript of each, without timestamps."""
        return [self._transcript(each) for each in self._write(features, [None] * len(features.mask), self.options)]

    def _in_sequence(self, clips: list[Tensor], timestamp: int) -> list[Transcript]:
        """Samples (S) of clips longer than a window → transcript of each; windows follow each other by timestamps.

        ``timestamp`` is the id of the first token of time.
        """
        recordings = [_Recording(self.encoder.logmel.recording(values)) for values in clips]
        while unread := [recording for recording in recordings if recording.position < recording.mel.shape[1]]:
            for first in range(0, len(unread), _MAX_WINDOWS):
                self._next_windows(unread[first : first + _MAX_WINDOWS], timestamp)
        codec = self.decoder.codec
        return [_join(codec.decode(recording.ids), recording.parts) for recording in recordings]

    def _next_windows(self, recordings: list[_Recording], first: int) -> None:
        """Write the next window of each recording and move to where the one after it begins."""
        frames = self.encoder.states(torch.stack([each.window(self.frames) for each in recordings]))
        features = Features(frames, all_real(frames), frames[:, 0, :0])
        languages = [each.parts[0].language if each.parts else None for each in recordings]
        for recording, written in zip(recordings, self._write(features, languages, self.timed_options), strict=True):
            kept, timestamp = finished_part(written.group[0][0], first)
            recording.ids += [number for number in kept if number < first]
            recording.parts.append(self._transcript(written))
            recording.position += self.frames if timestamp is None else 2 * timestamp

    def _write(self, features: Features, languages: list[str | None], options: GenerateOptions) -> list[_Written]:
        """Frames of windows (N T D) → what is written of each; languages that are None are detected if asked for."""
        decoder, count = self.decoder, len(features.mask)
        empty = torch.zeros(count, 0, decoder.width, device=features.mask.device)
        state = decoder.prefill(Prefix(empty, empty[..., 0].bool()), features)
        if self.detects and None in languages:
            languages = [*decoder.languages(state)]
        begins = [decoder.begins_in(language, isinstance(options, _TimedOptions)) for language in languages]
        stops = decoder.stop_ids()
        groups = decoder.search_tokens(decoder.append_ids(state, begins), options, stops)
        ends, silence = set(to_list(stops)), to_list(decoder.no_speech(state))
        groups = [[([n for n in ids if n not in ends], score) for ids, score in group] for group in groups]
        return [_Written(*each) for each in zip(groups, silence, languages, strict=True)]

    def _transcript(self, written: _Written) -> Transcript:
        """Transcript of a window; timestamps are no part of its texts."""
        first, decode = self.decoder.first_timestamp, self.decoder.codec.decode
        texts = [
            Candidate(decode([number for number in ids if first is None or number < first]), score)
            for ids, score in written.group
        ]
        return _transcript(texts, written.no_speech, written.language)


@dataclass(frozen=True)
class _Written:
    """Hypotheses of a window without their ends, the best first; probability of no speech; language if detected."""

    group: list[Hypothesis]
    no_speech: float
    language: str | None


@dataclass
class _Recording:
    """Spectrogram (M F) of a long clip, the frame that is read next, and what is written: words and windows."""

    mel: Tensor
    position: int = 0
    ids: list[int] = field(default_factory=list[int])
    parts: list[Transcript] = field(default_factory=list[Transcript])

    def window(self, frames: int) -> Tensor:
        """Next ``frames`` (M F) of the spectrogram, padded with 0 as in Transformers."""
        part = self.mel[:, self.position : self.position + frames]
        return pad(part, (0, frames - part.shape[1]))


def _transcript(texts: list[Candidate], no_speech_prob: float, language: str | None = None) -> Transcript:
    """Transcript of a window from its candidates, the best first."""
    best = texts[0]
    raw = best.text.encode()
    ratio = len(raw) / len(zlib.compress(raw)) if raw else 0.0
    spread = best.score - texts[-1].score
    return Transcript(best.text, best.score, no_speech_prob, ratio, spread, tuple(texts), language)


def _join(text: str, parts: list[Transcript]) -> Transcript:
    """Transcript of a clip with this ``text`` from those of its windows."""
    signals = [sum(values) / len(parts) for values in zip(*(part.signals for part in parts), strict=True)]
    return Transcript(text, *signals, nbest=(Candidate(text, signals[0]),), language=parts[0].language)
