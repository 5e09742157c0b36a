"""Transcriber: against Transformers' own Whisper, and each of its numbers against the definition."""

from __future__ import annotations

import json
import shutil
import zlib
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
from mmprefix.parts import from_recipe, to_recipe
from mmprefix.transcriber import Transcriber, Transcript, _transcript
from mmprefix.types import Candidate, Media
from tiny import speech_system as tiny_speech_system
from tiny import whisper as tiny_whisper
from tiny.speech_system import PHRASES, RATE, SpeechSystem, tone

TOLERANCE = 1e-4
CLEAR = 0.01  # nats that a token must lead by, on a processor that rounds in another way


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> SpeechSystem:
    return tiny_speech_system.build(tmp_path_factory.mktemp("spoken"), taught=True)


@pytest.fixture(scope="module")
def greedy(spoken: SpeechSystem) -> Transcriber:
    return Transcriber(spoken.path("whisper"), num_beams=1, max_new_tokens=16)


@pytest.fixture(scope="module")
def wide(spoken: SpeechSystem) -> Transcriber:
    return Transcriber(spoken.path("whisper"), num_beams=4, max_new_tokens=16)


def sounds() -> list[np.ndarray]:
    """The four tones, noise and silence, all of different lengths."""
    return [
        *(tone(pitch, 0.5 + 0.3 * n) for n, pitch in enumerate(PHRASES.values())),
        *tiny_speech_system.noise_and_silence().values(),
    ]


def media(values: list[np.ndarray]) -> Media:
    return pad_media([torch.from_numpy(value) for value in values])


def whisper(transcriber: Transcriber) -> Any:
    """The same model as Transformers has it."""
    return hf.WhisperForConditionalGeneration.from_pretrained(transcriber.identity.source).eval()


def theirs(model: Any, transcriber: Transcriber, values: list[np.ndarray], **options: Any) -> list[list[int]]:
    """The tokens that Transformers' ``generate`` writes behind the same start, the end of text left out."""
    inputs = spectrograms(transcriber, values)
    start = torch.tensor([transcriber.decoder.begins] * len(values))
    found = model.generate(
        inputs, decoder_input_ids=start, max_new_tokens=16, num_beams=1, do_sample=False,
        attention_mask=torch.ones(inputs.shape[0], inputs.shape[2], dtype=torch.long), **options,
    )  # fmt: skip
    rows = cast(list[list[int]], found.tolist())
    return [row[: row.index(0)] if 0 in row else row for row in rows]


def spectrograms(transcriber: Transcriber, values: list[np.ndarray]) -> Tensor:
    extractor = hf.WhisperFeatureExtractor.from_pretrained(transcriber.identity.source)
    return extractor(values, sampling_rate=RATE, return_tensors="pt").input_features


def log_probs(model: Any, transcriber: Transcriber, value: np.ndarray, ids: list[int]) -> Tensor:
    """By one plain pass, the log-probabilities (N V) of what follows each of the tokens ``ids``."""
    inputs = spectrograms(transcriber, [value])
    return model(input_features=inputs, decoder_input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def test_the_text_is_the_one_that_transformers_writes(greedy: Transcriber) -> None:
    values, model, words = sounds(), whisper(greedy), greedy.decoder.tokenizer
    wanted = [cast(str, words.decode(ids, skip_special_tokens=True)).strip() for ids in theirs(model, greedy, values)]
    assert [heard.text for heard in greedy(media(values))] == wanted
    assert wanted == [*PHRASES, *tiny_speech_system.noise_and_silence()]  # what it was taught, so that sounds do matter


def test_each_number_is_what_it_says(greedy: Transcriber) -> None:
    values, model, decoder = sounds(), whisper(greedy), greedy.decoder
    written = theirs(model, greedy, values)
    (silent,) = cast(list[int], decoder.tokenizer.convert_tokens_to_ids(["<|nospeech|>"]))
    for value, ids, heard in zip(values, written, greedy(media(values)), strict=True):
        text = [*ids, 0][:16]
        said = log_probs(model, greedy, value, [*decoder.begins, *text[:-1]])
        first = len(decoder.begins) - 1
        mean = said[range(first, first + len(text)), text].mean()
        assert heard.avg_logprob == pytest.approx(float(mean), abs=TOLERANCE)
        # <|nospeech|> is looked up right behind <|startoftranscript|>
        nothing = log_probs(model, greedy, value, decoder.begins[:1])[0, silent].exp()
        assert heard.no_speech_prob == pytest.approx(float(nothing), rel=1e-3, abs=1e-7)
        raw = heard.text.encode()
        assert heard.compression_ratio == len(raw) / len(zlib.compress(raw))
        assert heard.nbest_spread == 0
        assert heard.signals == [getattr(heard, name) for name in SIGNALS] == list(vars(heard).values())[1:5]


def test_the_spread_is_between_the_best_beam_and_the_last(wide: Transcriber) -> None:
    for heard in wide(media(sounds())):
        scores = [one.score for one in heard.nbest]
        assert len(scores) == 4
        assert scores == sorted(scores, reverse=True)
        assert heard.nbest_spread == scores[0] - scores[-1] > 0
        assert (heard.text, heard.avg_logprob) == (heard.nbest[0].text, heard.nbest[0].score)


@pytest.mark.parametrize("beams", ["greedy", "wide"])
def test_a_batch_equals_its_items(beams: str, request: pytest.FixtureRequest) -> None:
    transcriber = request.getfixturevalue(beams)
    values = sounds()
    together = transcriber(media(values))
    for value, heard in zip(values, together, strict=True):
        (alone,) = transcriber(media([value]))
        assert alone.text == heard.text
        tiny_whisper.assert_same_hypotheses(alone.nbest, heard.nbest, TOLERANCE)
        assert alone.signals == pytest.approx(heard.signals, abs=TOLERANCE)


def test_a_long_clip_is_written_down_window_by_window(greedy: Transcriber) -> None:
    """Two seconds are a window; Whisper never looks at two windows at once."""
    names = list(PHRASES)
    pieces = [tone(PHRASES[name], 2.0) for name in (names[1], names[3])] + [tone(PHRASES[names[2]], 0.7)]
    long, short = greedy(media([np.concatenate(pieces), pieces[0]]))
    alone = greedy(media(pieces))
    assert [one.text for one in alone] == [names[1], names[3], names[2]]
    assert long.text == " ".join(one.text for one in alone)
    means = np.mean([one.signals for one in alone], axis=0)
    assert long.signals == pytest.approx(means.tolist(), abs=TOLERANCE)
    assert short.text == names[1]


def test_tokens_that_whisper_suppresses_are_not_written(
    spoken: SpeechSystem, greedy: Transcriber, tmp_path: Path
) -> None:
    """Those of generation_config.json: some never, some not as the first."""
    folder = shutil.copytree(spoken.path("whisper"), tmp_path / "whisper")
    values = sounds()
    plain = theirs(whisper(greedy), greedy, values)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"suppress_tokens": [plain[0][1], 0x10000], "begin_suppress_tokens": [plain[1][0], 0]}
    (folder / "generation_config.json").write_text(json.dumps(config))
    careful = Transcriber(str(folder), num_beams=1, max_new_tokens=16)
    found, model, words = careful(media(values)), whisper(careful), careful.decoder.tokenizer
    wanted = theirs(model, careful, values)
    assert wanted[0] != plain[0]
    assert wanted[1] != plain[1]
    assert all(plain[0][1] not in ids for ids in wanted)
    assert all(ids and ids[0] != plain[1][0] for ids in wanted)
    never, first_too = ([plain[0][1]], [plain[0][1], plain[1][0], 0])
    compared = 0
    for value, ids, one in zip(values, wanted, found, strict=True):  # probabilities are those of what is left
        text = [*ids, 0][:16]
        said = log_probs(model, careful, value, [*careful.decoder.begins, *text[:-1]])[
            len(careful.decoder.begins) - 1 :
        ]
        said[0, first_too] = said[1:, never] = -torch.inf
        best = said[: len(text)].topk(2).values
        if (best[:, 0] - best[:, 1]).min() < CLEAR:  # second choices were not taught; some are near ties
            continue
        compared += 1
        assert one.text == cast(str, words.decode(ids)).strip()
        mean = said.log_softmax(-1)[range(len(text)), text].mean()
        assert one.avg_logprob == pytest.approx(float(mean), abs=TOLERANCE)
    assert compared >= 3
    # and silence is looked for among all
    first = [one.no_speech_prob for one in found]
    assert first == pytest.approx([one.no_speech_prob for one in greedy(media(values))], abs=1e-6)


def test_the_compression_ratio_counts_bytes() -> None:
    text = "är det så? " * 30
    heard = _transcript([Candidate(text, -0.5)], 0.1)
    raw = text.encode()
    assert len(raw) > len(text)
    assert heard.compression_ratio == len(raw) / len(zlib.compress(raw)) > 5
    assert _transcript([Candidate("", -0.5)], 0.1).compression_ratio == 0


def test_its_numbers_are_what_the_signals_encoder_reads(greedy: Transcriber) -> None:
    encoder = Signals()
    assert encoder.names == list(SIGNALS)
    (heard,) = greedy(media(sounds()[:1]))
    assert encoder.preprocess(tuple(heard.signals), 0.0, None).tolist() == pytest.approx(heard.signals)
    assert Transcript("", 0.0, 0.0, 0.0, 0.0).signals == [0.0] * 4


def test_a_recipe_rebuilds_it(greedy: Transcriber) -> None:
    again = from_recipe(to_recipe(greedy), Transcriber)
    assert to_recipe(again) == to_recipe(greedy)
    assert again(media(sounds()[:2])) == greedy(media(sounds()[:2]))  # to the bit, though one has written a while
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert not any(module.training for module in again.train().modules() if module is not again)


def test_no_more_is_written_than_there_are_positions(spoken: SpeechSystem) -> None:
    greedy = Transcriber(spoken.path("whisper"), num_beams=1, max_new_tokens=1000)
    assert greedy.options.max_new_tokens == 96 - 4
    assert greedy(media(sounds()[:1]))[0].text == next(iter(PHRASES))


def test_the_shell_writes_it(spoken: SpeechSystem, capsys: Any) -> None:
    files = [spoken.path(f"{n}.wav") for n in range(4)]
    words = ["transcribe", spoken.path("whisper"), *files, "--json", "--num-beams", "2", "--device", "cpu"]
    assert main(words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == list(PHRASES)
    model = Transcriber(spoken.path("whisper"), num_beams=2)
    values = [model.preprocess(file, 0.0, None) for file in files]
    for line, heard in zip(lines, model(pad_media(values)), strict=True):
        assert line["signals"] == pytest.approx(heard.signals, abs=TOLERANCE)
