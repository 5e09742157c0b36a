"""Transcriber: texts against Transformers' Whisper, and each signal against its definition."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

from mmprefix.cli.main import main
from mmprefix.data.collate import pad_media
from mmprefix.encoders.signals import SIGNALS, Signals
from mmprefix.errors import InputError
from mmprefix.parts import from_recipe, to_recipe
from mmprefix.transcriber import Transcriber, Transcript, _transcript
from mmprefix.types import Candidate, Media
from mmprefix.weights.source import resolve_folder
from tiny import speech_system as tiny_speech_system
from tiny import whisper as tiny_whisper
from tiny.speech_system import PHRASES, RATE, SpeechSystem, tone

TOLERANCE = 1e-4
SHARED = Path(__file__).resolve().parents[2] / "shared"
CLEAR = 0.01  # smallest lead (nats) of a token that rounding on another processor does not change


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> SpeechSystem:
    return tiny_speech_system.build(tmp_path_factory.mktemp("spoken"), taught=True)


@pytest.fixture(scope="module")
def greedy(spoken: SpeechSystem) -> Transcriber:
    return Transcriber(spoken.path("whisper"), num_beams=1, max_new_tokens=16)


@pytest.fixture(scope="module")
def wide(spoken: SpeechSystem) -> Transcriber:
    return Transcriber(spoken.path("whisper"), num_beams=4, max_new_tokens=16)


def clips() -> list[np.ndarray]:
    """Four tones, noise and silence, all of different lengths."""
    return [
        *(tone(pitch, 0.5 + 0.3 * n) for n, pitch in enumerate(PHRASES.values())),
        *tiny_speech_system.noise_and_silence().values(),
    ]


def padded(values: list[np.ndarray]) -> Media:
    """Clips as one batch (B S)."""
    return pad_media([torch.from_numpy(value) for value in values])


def transformers_model(transcriber: Transcriber) -> Any:
    """Model of ``transcriber``, loaded by Transformers."""
    return hf.WhisperForConditionalGeneration.from_pretrained(resolve_folder(transcriber.identity.source)).eval()


def tokens_by_transformers(
    model: Any, transcriber: Transcriber, values: list[np.ndarray], **options: Any
) -> list[list[int]]:
    """Tokens that Transformers' ``generate`` writes after the same start tokens, without the end of text."""
    inputs = spectrograms(transcriber, values)
    start = torch.tensor([transcriber.decoder.begins] * len(values))
    tokens = model.generate(
        inputs, decoder_input_ids=start, max_new_tokens=16, num_beams=1, do_sample=False,
        attention_mask=torch.ones(inputs.shape[0], inputs.shape[2], dtype=torch.long), **options,
    )  # fmt: skip
    rows = cast(list[list[int]], tokens.tolist())
    return [row[: row.index(0)] if 0 in row else row for row in rows]


def spectrograms(transcriber: Transcriber, values: list[np.ndarray]) -> Tensor:
    """Input features (B M F) of Transformers' Whisper."""
    extractor = hf.WhisperFeatureExtractor.from_pretrained(resolve_folder(transcriber.identity.source))
    return extractor(values, sampling_rate=RATE, return_tensors="pt").input_features


def log_probs(model: Any, transcriber: Transcriber, value: np.ndarray, ids: list[int]) -> Tensor:
    """Log-probabilities (N V) of the token after each of ``ids``, by one forward pass."""
    inputs = spectrograms(transcriber, [value])
    return model(input_features=inputs, decoder_input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def test_the_text_is_that_of_transformers(greedy: Transcriber) -> None:
    values, model, words = clips(), transformers_model(greedy), greedy.decoder.tokenizer
    expected = [
        cast(str, words.decode(ids, skip_special_tokens=True)).strip()
        for ids in tokens_by_transformers(model, greedy, values)
    ]
    assert [transcript.text for transcript in greedy(padded(values))] == expected
    assert expected == [
        *PHRASES,
        *tiny_speech_system.noise_and_silence(),
    ]  # the taught texts, so the sounds matter


def test_each_signal_equals_its_definition(greedy: Transcriber) -> None:
    values, model, decoder = clips(), transformers_model(greedy), greedy.decoder
    written = tokens_by_transformers(model, greedy, values)
    (silent,) = cast(list[int], decoder.tokenizer.convert_tokens_to_ids(["<|nospeech|>"]))
    for value, ids, transcript in zip(values, written, greedy(padded(values)), strict=True):
        text = [*ids, 0][:16]
        log_probs_of_text = log_probs(model, greedy, value, [*decoder.begins, *text[:-1]])
        first = len(decoder.begins) - 1
        mean = log_probs_of_text[range(first, first + len(text)), text].mean()
        assert transcript.avg_logprob == pytest.approx(float(mean), abs=TOLERANCE)
        # The probability of <|nospeech|> right after <|startoftranscript|>.
        nothing = log_probs(model, greedy, value, decoder.begins[:1])[0, silent].exp()
        assert transcript.no_speech_prob == pytest.approx(float(nothing), rel=1e-3, abs=1e-7)
        raw = transcript.text.encode()
        assert transcript.compression_ratio == len(raw) / len(zlib.compress(raw))
        assert transcript.nbest_spread == 0
        assert (
            transcript.signals
            == [getattr(transcript, name) for name in SIGNALS]
            == list(vars(transcript).values())[1:5]
        )


def test_the_spread_is_the_score_of_the_best_beam_minus_the_last(wide: Transcriber) -> None:
    for transcript in wide(padded(clips())):
        scores = [candidate.score for candidate in transcript.nbest]
        assert len(scores) == 4
        assert scores == sorted(scores, reverse=True)
        assert transcript.nbest_spread == scores[0] - scores[-1] > 0
        assert (transcript.text, transcript.avg_logprob) == (transcript.nbest[0].text, transcript.nbest[0].score)


@pytest.mark.parametrize("beams", ["greedy", "wide"])
def test_a_batch_equals_its_items(beams: str, request: pytest.FixtureRequest) -> None:
    transcriber = request.getfixturevalue(beams)
    values = clips()
    together = transcriber(padded(values))
    for value, transcript in zip(values, together, strict=True):
        (alone,) = transcriber(padded([value]))
        assert alone.text == transcript.text
        tiny_whisper.assert_same_hypotheses(alone.nbest, transcript.nbest, TOLERANCE)
        assert alone.signals == pytest.approx(transcript.signals, abs=TOLERANCE)


def test_a_long_clip_is_transcribed_window_by_window(greedy: Transcriber) -> None:
    """A window is two seconds; no pass reads two windows."""
    names = list(PHRASES)
    pieces = [tone(PHRASES[name], 2.0) for name in (names[1], names[3])] + [tone(PHRASES[names[2]], 0.7)]
    long, short = greedy(padded([np.concatenate(pieces), pieces[0]]))
    alone = greedy(padded(pieces))
    assert [transcript.text for transcript in alone] == [names[1], names[3], names[2]]
    assert long.text == " ".join(transcript.text for transcript in alone)
    means = np.mean([transcript.signals for transcript in alone], axis=0)
    assert long.signals == pytest.approx(means.tolist(), abs=TOLERANCE)
    assert short.text == names[1]


def test_suppressed_tokens_are_not_written(spoken: SpeechSystem, greedy: Transcriber, tmp_path: Path) -> None:
    """Tokens listed in generation_config.json: some are never written, some not as the first token."""
    folder = shutil.copytree(spoken.path("whisper"), tmp_path / "whisper")
    values = clips()
    plain = tokens_by_transformers(transformers_model(greedy), greedy, values)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"suppress_tokens": [plain[0][1], 0x10000], "begin_suppress_tokens": [plain[1][0], 0]}
    (folder / "generation_config.json").write_text(json.dumps(config))
    careful = Transcriber(str(folder), num_beams=1, max_new_tokens=16)
    transcripts, model, words = careful(padded(values)), transformers_model(careful), careful.decoder.tokenizer
    expected = tokens_by_transformers(model, careful, values)
    assert expected[0] != plain[0]
    assert expected[1] != plain[1]
    assert all(plain[0][1] not in ids for ids in expected)
    assert all(ids and ids[0] != plain[1][0] for ids in expected)
    never, first_too = ([plain[0][1]], [plain[0][1], plain[1][0], 0])
    compared = 0
    for value, ids, transcript in zip(
        values, expected, transcripts, strict=True
    ):  # probabilities are over the other tokens
        text = [*ids, 0][:16]
        log_probs_of_text = log_probs(model, careful, value, [*careful.decoder.begins, *text[:-1]])[
            len(careful.decoder.begins) - 1 :
        ]
        log_probs_of_text[0, first_too] = log_probs_of_text[1:, never] = -torch.inf
        best = log_probs_of_text[: len(text)].topk(2).values
        if (best[:, 0] - best[:, 1]).min() < CLEAR:  # the second-best token was not taught; some are near ties
            continue
        compared += 1
        assert transcript.text == cast(str, words.decode(ids)).strip()
        mean = log_probs_of_text.log_softmax(-1)[range(len(text)), text].mean()
        assert transcript.avg_logprob == pytest.approx(float(mean), abs=TOLERANCE)
    assert compared >= 3
    # The probability of silence is over all tokens.
    first = [transcript.no_speech_prob for transcript in transcripts]
    assert first == pytest.approx([transcript.no_speech_prob for transcript in greedy(padded(values))], abs=1e-6)


def test_less_silence_is_less_work_and_a_batch_equals_its_items(spoken: SpeechSystem) -> None:
    """Clips of 0.7 and 1.4 seconds: the encoder reads one and two seconds of them, the decoder always two."""
    transcriber = Transcriber(spoken.path("whisper"), num_beams=1, max_new_tokens=16, silence=0.1)
    values = [tone(pitch, seconds) for pitch, seconds in zip(PHRASES.values(), (0.7, 1.4, 0.3), strict=False)]
    features, silent = transcriber.encoder(padded(values)), transcriber.encoder(padded([np.zeros(1, np.float32)]))
    assert features.mask.sum(1).tolist() == [100, 100, 100]
    assert [bool((row[50:] == silent.frames[0, 50:]).all()) for row in features.frames] == [True, False, True]
    for value, transcript in zip(values, transcriber(padded(values)), strict=True):
        (alone,) = transcriber(padded([value]))
        assert alone.text == transcript.text
        assert alone.signals == pytest.approx(transcript.signals, abs=TOLERANCE)


def test_the_compression_ratio_counts_bytes() -> None:
    text = "är det så? " * 30
    transcript = _transcript([Candidate(text, -0.5)], 0.1)
    raw = text.encode()
    assert len(raw) > len(text)
    assert transcript.compression_ratio == len(raw) / len(zlib.compress(raw)) > 5
    assert _transcript([Candidate("", -0.5)], 0.1).compression_ratio == 0


def test_the_signals_encoder_reads_its_signals(greedy: Transcriber) -> None:
    encoder = Signals()
    assert encoder.names == list(SIGNALS)
    (transcript,) = greedy(padded(clips()[:1]))
    assert encoder.preprocess(tuple(transcript.signals), 0.0, None).tolist() == pytest.approx(transcript.signals)
    assert Transcript("", 0.0, 0.0, 0.0, 0.0).signals == [0.0] * 4


def test_a_recipe_rebuilds_it(greedy: Transcriber) -> None:
    again = from_recipe(to_recipe(greedy), Transcriber)
    assert to_recipe(again) == to_recipe(greedy)
    assert again(padded(clips()[:2])) == greedy(padded(clips()[:2]))  # equal to the bit
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert not any(module.training for module in again.train().modules() if module is not again)


def test_the_text_is_limited_by_the_positions_of_the_model(spoken: SpeechSystem) -> None:
    transcriber = Transcriber(spoken.path("whisper"), num_beams=1, max_new_tokens=1000)
    assert transcriber.options.max_new_tokens == 96 - 4
    assert transcriber(padded(clips()[:1]))[0].text == next(iter(PHRASES))


def test_the_command_line_writes_the_transcript(spoken: SpeechSystem, capsys: Any) -> None:
    files = [spoken.path(f"{n}.wav") for n in range(4)]
    words = ["transcribe", spoken.path("whisper"), *files, "--json", "--num-beams", "2", "--device", "cpu"]
    assert main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == list(PHRASES)
    model = Transcriber(spoken.path("whisper"), num_beams=2)
    values = [model.preprocess(file, 0.0, None) for file in files]
    for line, transcript in zip(lines, model(pad_media(values)), strict=True):
        assert line["signals"] == pytest.approx(transcript.signals, abs=TOLERANCE)


def timed(folder: Path, seed: int = 0, beams: int = 1, *, options: Any = None, **generation: Any) -> Transcriber:
    """Transcriber of a random Whisper with timestamps, whose window has two seconds."""
    return Transcriber(tiny_whisper.save_timed_whisper(folder, seed, **generation), num_beams=beams, **(options or {}))


def murmur(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that comes and goes over tones that change with each second."""
    generator, time = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    noise = 0.2 * generator.normal(size=len(time)) * np.abs(np.sin(2 * time))
    return (noise + 0.3 * np.sin(2 * np.pi * (200 + 900 * np.floor(time)) * time)).astype(np.float32)


def text_by_transformers(transcriber: Transcriber, value: np.ndarray, **options: Any) -> str:
    """Transcript of one sound of any length by ``generate`` of Transformers."""
    folder = resolve_folder(transcriber.identity.source)
    extractor = hf.WhisperFeatureExtractor.from_pretrained(folder)
    long = {"truncation": False, "padding": "longest", "return_attention_mask": True}
    inputs = extractor(value, sampling_rate=RATE, return_tensors="pt", **(long if options.pop("long", False) else {}))
    (ids,) = transformers_model(transcriber).float().generate(inputs["input_features"], num_beams=1, **options)
    return cast(str, transcriber.decoder.tokenizer.decode(ids, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("seed", range(2))
def test_a_clip_longer_than_the_window_is_that_of_transformers(seed: int, tmp_path: Path) -> None:
    """Windows of two seconds over up to seven: they follow each other by timestamps, and nothing is cut off."""
    transcriber = timed(tmp_path / "whisper", seed)
    values = [murmur(seconds, seed) for seconds in (7.0, 2.1, 4.7)]
    options = {"long": True, "return_timestamps": True, "language": "en", "task": "transcribe"}
    expected = [text_by_transformers(transcriber, value, **options) for value in values]
    assert [transcriber(padded([value]))[0].text for value in values] == expected
    assert len(set(expected)) == 3


def test_a_batch_of_long_and_short_clips_equals_its_items(tmp_path: Path) -> None:
    transcriber = timed(tmp_path / "whisper", beams=2)
    values = [murmur(seconds, n) for n, seconds in enumerate((0.4, 7.0, 2.0, 2.005, 3.3))]
    for value, transcript in zip(values, transcriber(padded(values)), strict=True):
        (alone,) = transcriber(padded([value]))
        assert alone.text == transcript.text
        assert alone.signals == pytest.approx(transcript.signals, abs=TOLERANCE)
    cut, whole = transcriber(padded([values[3][: 2 * RATE]])), transcriber(padded([values[3]]))
    assert cut == whole  # less than a frame is no window of its own, as in Transformers


@pytest.mark.parametrize("options", [{"language": "German"}, {"language": "de", "task": "translate"}])
def test_language_task_and_suppressed_tokens_are_those_of_transformers(options: Any, tmp_path: Path) -> None:
    """Over a batch of unlike lengths; the random model would write special tokens if it might."""
    transcriber = timed(tmp_path / "whisper", 1, options=options)
    values = [murmur(seconds, n) for n, seconds in enumerate((0.4, 1.9, 1.2, 0.9))]
    expected = [text_by_transformers(transcriber, value, **{"task": "transcribe", **options}) for value in values]
    assert [transcript.text for transcript in transcriber(padded(values))] == expected
    assert len({*expected}) > 1


def test_a_language_is_detected_as_transformers_does(tmp_path: Path) -> None:
    special = [*range(320, 429)]  # a random model would write timestamps where none are asked for
    transcriber = timed(tmp_path / "whisper", 2, options={"language": "auto"}, suppress_tokens=special)
    values = [murmur(seconds, n) for n, seconds in enumerate((0.4, 1.9, 1.2, 0.9))]
    transcripts, model = transcriber(padded(values)), transformers_model(transcriber)
    for value, transcript in zip(values, transcripts, strict=True):
        assert transcript.text == text_by_transformers(transcriber, value, task="transcribe")
        (number,) = model.detect_language(spectrograms(transcriber, [value])).tolist()
        assert f"<|{transcript.language}|>" == transcriber.decoder.tokenizer.convert_ids_to_tokens(number)
    assert {transcript.language for transcript in transcripts} == {"en", "de"}


@pytest.mark.parametrize("older", [False, True])
def test_a_model_of_english_alone_gets_no_language_and_no_task(older: bool, tmp_path: Path) -> None:
    """Like whisper-base.en, whose tokenizer has these tokens too; older ones say it by a forced id."""
    words = tiny_whisper.timed_tokenizer()
    start, silent = cast(list[int], words.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"]))
    english: dict[str, Any] = {"lang_to_id": None, "task_to_id": None, "is_multilingual": None if older else False}
    english |= {"forced_decoder_ids": [[1, silent]]} if older else {}
    transcriber = timed(tmp_path / "whisper", 2, **english)
    assert transcriber.decoder.begins == [start, silent]
    values = [murmur(seconds, n) for n, seconds in enumerate((0.4, 1.9, 5.0))]
    expected = [text_by_transformers(transcriber, value) for value in values[:2]]
    expected += [text_by_transformers(transcriber, values[2], long=True, return_timestamps=True)]
    assert [transcript.text for transcript in transcriber(padded(values))] == expected
    folder = transcriber.identity.source
    for wrong in ({"language": "de"}, {"task": "translate"}):
        with pytest.raises(InputError, match="writes English speech as English text"):
            Transcriber(folder, **cast(Any, wrong))
    assert Transcriber(folder, language="auto", num_beams=1)(padded(values[:1]))[0].text == expected[0]


def test_a_language_is_given_as_transformers_takes_it_or_refused_in_one_line(tmp_path: Path) -> None:
    """A code, an English name, or the token itself; no task, and nothing that the tokenizer does not have."""
    folder = timed(tmp_path / "whisper", 2).identity.source
    begins = [Transcriber(folder, language=word).decoder.begins for word in ("en", "English", "EN", "<|en|>")]
    assert begins == [begins[0]] * 4
    cases = {
        "translate": "language 'translate' is a task; give it as task",
        "germn": r"no <\|germn\|>; .* give a code or an English name, or none; did you mean 'german'\?$",
        "": r"its tokenizer has no <\|\|>",
    }
    for language, message in cases.items():
        with pytest.raises(InputError, match=message):
            Transcriber(folder, language=language)


def test_without_a_language_the_generation_config_says_it(tmp_path: Path) -> None:
    words = tiny_whisper.timed_tokenizer()
    german, task, silent = cast(
        list[int], words.convert_tokens_to_ids(["<|de|>", "<|transcribe|>", "<|notimestamps|>"])
    )
    named = timed(tmp_path / "named", options={"language": None}, language="german")
    forced = timed(tmp_path / "forced", options={"language": None}, forced_decoder_ids=[[1, german], [2, task]])
    neither = timed(tmp_path / "neither", options={"language": None}, forced_decoder_ids=[[1, None], [2, task]])
    assert named.decoder.begins[1:] == forced.decoder.begins[1:] == [german, task, silent]
    assert neither.decoder.begins[1:] == [task, silent]
    with pytest.raises(InputError, match=r"'auto': .* lists no languages; give one, or null"):
        timed(tmp_path / "none", options={"language": "auto"}, lang_to_id=None)(padded([murmur(1.0)]))


@pytest.mark.models
@pytest.mark.parametrize("beams", [1, 5])
def test_whisper_base_writes_the_tokens_of_transformers(beams: int, real_model: Callable[[str], str]) -> None:
    """Language, task, no timestamps, suppressed tokens: texts of ``generate`` with the same generation config.

    Scores of beams are renormalized behind suppressed tokens, as in OpenAI's own decoding.
    """
    transcriber = Transcriber(real_model("whisper-base"), num_beams=beams, max_new_tokens=20)
    model, words = transformers_model(transcriber), transcriber.decoder.tokenizer
    values = [tone(300.0, 0.8), tiny_speech_system.noise_and_silence()["some rain"][: RATE // 2]]
    options = {"language": "en", "task": "transcribe", "num_beams": beams, "max_new_tokens": 20}
    ids = model.float().generate(spectrograms(transcriber, values), renormalize_logits=beams > 1, **options)
    expected = [cast(str, words.decode(row, skip_special_tokens=True)).strip() for row in ids]
    assert [transcript.text for transcript in transcriber(padded(values))] == expected


@pytest.mark.numeric
def test_a_text_that_repeats_itself_is_transcribed_again_with_the_whole_window(
    spoken: SpeechSystem, greedy: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Transcriber(spoken.path("whisper"), num_beams=1, max_new_tokens=16, silence=0.0)
    media = padded(clips())
    by_short, by_whole = short(media), greedy(media)
    differing = [a.avg_logprob != pytest.approx(b.avg_logprob) for a, b in zip(by_short, by_whole, strict=True)]
    assert any(differing)  # the window counts, or this test could not fail
    ratios = sorted({each.compression_ratio for each in by_short})
    threshold = ratios[len(ratios) // 2 - 1]  # some texts are above it, others are not
    monkeypatch.setattr("mmprefix.transcriber._REPETITIVE", threshold)
    for again, first, whole in zip(short(media), by_short, by_whole, strict=True):
        expected = whole if first.compression_ratio > threshold else first
        assert again.text == expected.text
        assert again.signals == pytest.approx(expected.signals, abs=TOLERANCE)
    repeats = [first.compression_ratio > threshold for first in by_short]
    assert 0 < sum(repeats) < len(repeats)


@pytest.mark.models
def test_whisper_base_writes_a_long_recording_as_transformers_does(real_model: Callable[[str], str]) -> None:
    """Two windows of joined clips; the first is read again from its last finished sentence on."""
    data = SHARED / "data" / "slurp_tts"
    if not data.is_dir():
        pytest.skip("../shared/data/slurp_tts is not here")
    transcriber = Transcriber(real_model("whisper-base"), num_beams=1)
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()[:40]]
    clips = [transcriber.preprocess(str(data / row["audio"]), 0.0, None) for row in rows]
    sound = torch.cat(clips)[: 45 * RATE]
    options = {"language": "en", "task": "transcribe", "return_timestamps": True, "condition_on_prev_tokens": False}
    (transcript,) = transcriber(pad_media([sound]))
    assert transcript.text == text_by_transformers(transcriber, sound.numpy(), long=True, **options)
    assert len(transcript.text.split()) > 60
