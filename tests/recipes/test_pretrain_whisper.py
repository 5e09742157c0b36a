"""Program that trains small Whispers: tokens, filling of windows, and loading by Transformers and our encoder."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.media.audio import read_waveform
from mmprefix.recipes.pretrain import whisper as pretrain_whisper
from mmprefix.recipes.pretrain import whisper_tokens
from mmprefix.recipes.pretrain.whisper_training import Speller, Spotter
from mmprefix.recipes.pretrain.whisper_windows import Filling, SpeechClip, fill, lay, level, power, vary
from mmprefix.types import Media

RATE = 16000
WORDS = {"up": (400, 1200), "down": (1200, 400), "flat": (700, 700)}
TINY = {"width": 32, "heads": 2, "encoder-layers": 1, "decoder-layers": 1, "mels": 40, "vocab-size": 300}


def _clip(word: str, seed: int) -> np.ndarray:
    """Half a second of a tone that rises, falls or stays."""
    rng = np.random.default_rng(seed)
    first, last = (tone * rng.uniform(0.9, 1.1) for tone in WORDS[word])
    pitch = np.linspace(first, last, RATE // 2)
    return 0.3 * np.sin(2 * math.pi * np.cumsum(pitch) / RATE) + 0.001 * rng.standard_normal(RATE // 2)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of eighteen clips, three of them in split val."""
    folder = tmp_path_factory.mktemp("speech")
    rows = []
    for number in range(18):
        word = list(WORDS)[number % 3]
        soundfile.write(folder / f"{number}.wav", _clip(word, number), RATE)
        split = "train" if number < 15 else "val"
        rows.append({"id": str(number), "audio": f"{number}.wav", "transcript": word.title(), "split": split})
    file = folder / "manifest.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _train(manifest: Path, out: Path, **more: object) -> dict[str, Any]:
    options = {"manifest": manifest, "out": out, "window": 1.2, "positions": 64, **TINY, **more}
    pretrain_whisper.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    return json.loads((out / "training.json").read_text())


@pytest.fixture(scope="module")
def trained(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "whisper"
    return out, _train(speech, out, steps=180, lr=0.01, average=0.9, garbled=0, clips=1, silent=0.2, snapshot=80)


@pytest.fixture(scope="module")
def loaded(speech: Path, trained: tuple[Path, dict[str, Any]]) -> tuple[WhisperForConditionalGeneration, torch.Tensor]:
    """Model loaded by Transformers, and the log-mel (3 M F) of one clip of each word."""
    extractor = WhisperFeatureExtractor.from_pretrained(trained[0])
    waves = [read_waveform(speech.parent / f"{number}.wav", RATE).numpy() for number in range(3)]
    windows = extractor(waves, sampling_rate=RATE, max_length=int(1.2 * RATE), return_tensors="pt").input_features
    return WhisperForConditionalGeneration.from_pretrained(trained[0]).eval(), windows


def test_transformers_transcribes_the_trained_words(
    trained: tuple[Path, dict[str, Any]], loaded: tuple[WhisperForConditionalGeneration, torch.Tensor]
):
    model, windows = loaded
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    assert tokenizer.batch_decode(model.generate(windows), skip_special_tokens=True) == [" up", " down", " flat"]
    assert trained[1]["train"]["accuracy"] == 1.0
    assert trained[1]["inputs"] == 15
    assert trained[1]["val"]["rows"] == 3
    before = torch.tensor(tokenizer("<|startofprev|> what is said?", add_special_tokens=False)["input_ids"])
    answers = model.generate(windows, prompt_ids=before)
    assert [text.split()[-1] for text in tokenizer.batch_decode(answers, skip_special_tokens=True)] == list(WORDS)


def test_noise_is_transcribed_as_no_speech(
    trained: tuple[Path, dict[str, Any]], loaded: tuple[WhisperForConditionalGeneration, torch.Tensor]
):
    model, windows = loaded
    start, silence = AutoTokenizer.from_pretrained(trained[0]).convert_tokens_to_ids(
        ["<|startoftranscript|>", "<|nospeech|>"]
    )
    torch.manual_seed(0)
    noise = level(torch.empty(1, *windows.shape[1:]).exponential_())
    chance = model(torch.cat([windows, noise]), decoder_input_ids=torch.full((4, 1), start)).logits.softmax(2)
    assert chance[3, 0, silence] > 10 * chance[:3, 0, silence].max()


def test_our_encoder_gives_the_same_frames_as_transformers(
    speech: Path, trained: tuple[Path, dict[str, Any]], loaded: tuple[WhisperForConditionalGeneration, torch.Tensor]
):
    encoder = Whisper(str(trained[0]), window="whole")
    clip = encoder.preprocess(speech.parent / "0.wav", 0.0, None)
    frames = encoder(Media(clip[None], torch.tensor([len(clip)]))).frames
    assert frames.shape == (1, 30, 32)  # 1.2 s at 25 frames a second
    expected = loaded[0].model.encoder(loaded[1][:1]).last_hidden_state
    torch.testing.assert_close(frames, expected, atol=1e-3, rtol=1e-3)


def test_training_starts_from_an_earlier_model(speech: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path):
    again = _train(speech, tmp_path / "again", steps=1, lr=0, start=trained[0])
    assert again["train"] == trained[1]["train"]  # the same tokens: all was kept
    _train(speech, tmp_path / "new", **{"steps": 1, "lr": 0, "start": trained[0], "vocab-size": 290})
    old, new = (WhisperForConditionalGeneration.from_pretrained(path) for path in (trained[0], tmp_path / "new"))
    for name in ("model.encoder.conv1.weight", "model.decoder.layers.0.encoder_attn.k_proj.weight"):
        torch.testing.assert_close(new.state_dict()[name], old.state_dict()[name])
    assert new.config.vocab_size < old.config.vocab_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "new"]


def test_tokens_of_a_window():
    tokenizer = whisper_tokens.make_tokenizer(["seven", "turn it up"], 320)
    torch.manual_seed(0)
    before = next(filter(None, (whisper_tokens.previous(tokenizer, ["seven turn it"], 4) for _ in range(20))))
    assert before[0] == tokenizer.convert_tokens_to_ids("<|startofprev|>")
    assert len(before) <= 4
    read, judged = whisper_tokens.window_tokens(tokenizer, before, "turn it")
    start = len(before)
    assert tokenizer.decode(read[start:]) == "<|startoftranscript|><|en|><|transcribe|><|notimestamps|> turn it"
    assert tokenizer.decode(judged[start:]) == "<|en|><|transcribe|><|notimestamps|> turn it<|endoftext|>"
    assert judged[:start].eq(whisper_tokens.IGNORED).all()
    assert read[start:].tolist() == tokenizer(" turn it")["input_ids"][:-1]
    read, judged = whisper_tokens.window_tokens(tokenizer, [], None)
    assert tokenizer.decode(read) == "<|startoftranscript|><|nospeech|>"
    assert tokenizer.decode(judged) == "<|nospeech|><|endoftext|>"


def test_only_the_text_is_garbled():
    tokenizer = whisper_tokens.make_tokenizer(["seven", "turn it up"], 320)
    read, judged = whisper_tokens.window_tokens(tokenizer, [300, 5], "turn it up")
    torch.manual_seed(0)
    wrong = whisper_tokens.garble(read, judged, 1.0, whisper_tokens.end_id(tokenizer))
    assert (wrong != read).nonzero().flatten().tolist() == [6, 7, 8]
    assert wrong[6:].lt(whisper_tokens.end_id(tokenizer)).all()
    assert torch.equal(whisper_tokens.garble(read, judged, 0.0, whisper_tokens.end_id(tokenizer)), read)


def test_log_mel_equals_that_of_the_feature_extractor():
    extractor = WhisperFeatureExtractor(feature_size=40, hop_length=320, chunk_length=1)
    wave = torch.from_numpy(_clip("up", 0)).float()
    expected = extractor(wave.numpy(), sampling_rate=RATE, return_tensors="pt").input_features[0]
    laid = level(lay([power(wave, extractor)], 50))
    torch.testing.assert_close(laid[:, :24], expected[:, :24], atol=1e-4, rtol=0)  # the last column meets the silence


def test_windows_hold_clips_in_the_order_of_their_texts():
    torch.manual_seed(0)
    clips = [SpeechClip(torch.full((8, 20), 10.0**number), str(number)) for number in range(3)]
    plan = Filling(columns=70, clips=3, speed=0.1, tract=0.1, gain=0.0, noisy=0.0, silent=0.2, hidden=0.0, full=1.0)
    windows, texts = fill(clips, plan, 60)
    assert windows.shape == (60, 8, 70)
    assert windows.isfinite().all()
    assert {len(clip_texts) for clip_texts in texts} == {0, 1, 2, 3}
    long = SpeechClip(torch.ones(8, 100), "long")
    assert fill([long], Filling(columns=70, silent=0.0), 1)[1] == [["long"]]  # sped up to fit
    plain = Filling(columns=70, silent=0.0).eased(0.0)
    short, clip_texts = fill(clips[:1], plain, 2)
    assert short.shape[2] < 70  # a little more than the 20 columns of the longest clip
    assert short.shape[2] % 2 == 0
    assert clip_texts == [["0"], ["0"]]
    torch.testing.assert_close(short[:, :, :20].amax((1, 2)), torch.full((2,), 1.0), atol=0.3, rtol=0)
    sounds = [vary(clip.power, plan) for clip in clips]
    laid = lay(sounds, 70).amax(0)
    order = [round(math.log10(value)) for value in laid[laid > 0].tolist()]
    assert list(dict.fromkeys(order)) == [0, 1, 2]


def test_the_spotter_ignores_word_order_and_the_speller_does_not():
    torch.manual_seed(0)
    texts = ["iced tea , large", "large , iced tea", "tea"]
    frames = torch.randn(3, 12, 8)
    spotter, speller = Spotter(8, texts), Speller(8, texts)
    assert sorted(spotter.places) == ["iced", "large", "tea"]
    same = frames[:1]
    assert spotter(same, texts[:1]).item() == spotter(same, texts[1:2]).item()
    assert speller(same, texts[:1]).item() != speller(same, texts[1:2]).item()
    assert speller(frames, ["", "", ""]).isfinite()  # silence
    with torch.no_grad():
        spotter.out.weight.zero_()
        spotter.out.weight[spotter.places["tea"], 0] = 10
        spotter.out.bias.fill_(-5)
        quiet = torch.zeros(1, 50, 8)
        once = quiet.clone()
        once[0, 7, 0] = 1
    assert spotter(once, ["tea"]) < spotter(quiet, ["tea"]) - 3  # one frame is enough


def test_slot_values_are_read_in_the_order_of_their_names():
    row = {"slots": {"size": "Large", "drink": "iced tea"}, "transcript": None}
    assert pretrain_whisper.text_of(row, "slots") == "iced tea , large"
    assert pretrain_whisper.text_of(row, "transcript") is None
    assert "what is the milk amount?" in pretrain_whisper.questions([{"slots": {"milkAmount": "some"}}])


def test_each_slot_is_measured_against_its_commonest_value():
    train = [{"slots": {"drink": "tea"}}, {"slots": {"drink": "tea", "size": "large"}}, {"slots": {"drink": "milk"}}]
    rows = [{"slots": {"drink": "milk", "size": "large"}}, {"slots": {"drink": "tea"}}]
    accuracies = pretrain_whisper.slot_accuracy(["milk , large", "milk"], rows, train)
    assert accuracies == {"drink": {"accuracy": 0.5, "majority": 0.5}, "size": {"accuracy": 1.0, "majority": 0.5}}


def test_a_manifest_without_texts_is_refused(speech: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"manifest\.jsonl: no row of split train has --text slots"):
        _train(speech, tmp_path / "out", text="slots")
