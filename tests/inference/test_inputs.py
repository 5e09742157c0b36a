"""Inputs in the forms that people hold them in: arrays, pairs, rows of datasets; compared with the file itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from mmprefix import InputError, Predictor, Waveform
from tiny.models import RATE, assert_same_candidates, random_picture, sound_bytes, tone

TONE = tone(1.0, 330.0)


class Samples(NamedTuple):
    """Decoded samples as torchcodec gives them: data (C S) and the rate."""

    data: torch.Tensor
    sample_rate: int


class AudioDecoder:
    """The part of torchcodec's decoder that is used; ``datasets`` gives such an object for a sound."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def get_all_samples(self) -> Samples:
        return Samples(torch.from_numpy(self.values)[None], RATE)


@pytest.mark.numeric
def test_a_sound_in_memory_equals_its_file(model: Predictor, tmp_path: Path) -> None:
    whole = np.round(tone(1.1, 330.0) * 32767)
    (tmp_path / "a.wav").write_bytes(sound_bytes(whole.astype(np.int16)))
    values = whole / 32768  # in steps that bfloat16 does not hold: it is compared with itself below
    sounds: list[Any] = [
        tmp_path / "a.wav",
        (values, RATE),
        (torch.from_numpy(values), RATE),
        (RATE, whole.astype(np.int16)),  # as scipy.io.wavfile.read gives it
        (values.tolist(), RATE),
        (values, float(RATE)),
        Waveform(values.tolist(), RATE),
        Waveform(values[:, None].repeat(2, 1), RATE),  # (samples, channels), as soundfile.read gives it
        Waveform(whole.astype(np.int32) << 16, RATE),
        {"array": values, "sampling_rate": RATE, "path": None},
        {"bytes": (tmp_path / "a.wav").read_bytes(), "path": "a.wav"},
        {"bytes": None, "path": str(tmp_path / "a.wav")},
        {"audio": {"array": values, "sampling_rate": RATE}},
        {"audio": (values, RATE)},
        AudioDecoder(values),
    ]
    candidates = model.candidates(sounds, num_return=2)
    assert_same_candidates(candidates, [candidates[0]] * len(sounds))
    assert model(sounds[1]) == model(sounds[0])  # alone, not in a list
    rough = torch.from_numpy(values).bfloat16()
    assert_same_candidates(model.candidates([(rough, RATE)]), model.candidates([(rough.float(), RATE)]))


@pytest.mark.numeric
def test_a_picture_in_memory_equals_its_file(model: Predictor, tmp_path: Path) -> None:
    drawing = random_picture(5)
    drawing.save(tmp_path / "a.png")
    values = np.asarray(drawing)
    pictures: list[Any] = [
        tmp_path / "a.png",
        values,
        values / 255,
        torch.from_numpy(values.copy()).permute(2, 0, 1),
        torch.from_numpy(values.copy()).permute(2, 0, 1) / 255,
        {"bytes": (tmp_path / "a.png").read_bytes(), "path": None},
        {"image": values},
    ]
    candidates = model.candidates(pictures, num_return=2)
    assert_same_candidates(candidates, [candidates[0]] * len(pictures))
    assert model(values) == model(drawing)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Waveform(np.round(TONE * 32767).astype(np.float32), RATE), r"as large as \d+,\d+; floats are in -1..1"),
        (Waveform(np.round(TONE * 32767), RATE), r"Divide by 32768"),
        (Waveform(np.round(TONE * 20), RATE), r"floats are in -1..1"),
        (Waveform(np.round(TONE * 32767).astype(np.int32), RATE), "int32 with values of 16 bits; give int16"),
        (Waveform(np.round(TONE * 32767).astype(np.int64), RATE), "type int64; give int16, int32, or floats"),
        (Waveform([1, -2, 3], RATE), "type int64"),
        (Waveform(torch.round(torch.from_numpy(TONE) * 32767).bfloat16(), RATE), "floats are in -1..1"),
        (Waveform(TONE.astype(complex), RATE), "type complex128"),
        (Waveform(["a", "b"], RATE), "samples of type <U1"),  # pyright: ignore[reportArgumentType]
        (Waveform([[0.1], [0.2, 0.3]], RATE), "no array of numbers"),  # pyright: ignore[reportArgumentType]
        (Waveform(np.zeros((40, 40)), RATE), r"shape \(40, 40\); give \(S,\)"),
        (Waveform(np.zeros((2, 0)), RATE), "length zero"),
        (Waveform(TONE, None), "a rate of None Hz; give a positive whole number"),  # pyright: ignore[reportArgumentType]
        (Waveform(TONE, "16000"), "a rate of 16000 Hz; give"),  # pyright: ignore[reportArgumentType]
        (Waveform(TONE, float("nan")), "a rate of nan Hz"),  # pyright: ignore[reportArgumentType]
        (Waveform(TONE, True), "a rate of True Hz"),
        (Waveform(TONE, 5), "a rate of 5 Hz; a sound has 100 Hz or more"),
        (Waveform(np.zeros(500_000), 100), "5,000 seconds, the limit is 3,600"),
        ({"array": np.round(TONE * 32767), "sampling_rate": RATE}, "floats are in -1..1"),
        ({"array": TONE, "sampling_rate": None}, "a rate of None Hz"),
        (Image.new("RGB", (0, 0)), r"has no pixels \(0 x 0\)"),
        (np.zeros((4, 4), np.int64), "type int64; give uint8"),
        (np.zeros(16000), r"type ndarray and shape \(16000,\): .* mmprefix.Waveform\(values, rate\)"),
        (TONE[None].repeat(2, 0), "floats of a picture are in 0..1"),  # (C S) without a rate
        ((b"x", 5), "an input of type int"),
    ],
)
def test_values_of_an_unknown_scale_or_type_are_refused_in_one_line(model: Predictor, source: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        model(source)
    assert "\n" not in str(error.value)


def test_silence_has_every_scale(model: Predictor) -> None:
    for values in (np.zeros(8000), np.zeros(8000, np.int16), np.zeros(8000, np.int32), [0.0] * 8000):
        assert model((values, RATE)) == model((np.zeros(8000), RATE))


def test_loud_sounds_are_not_refused(model: Predictor) -> None:
    """A limiter that was left out, and samples of 0 and 1 alone, are sounds."""
    for values in (2.5 * TONE, np.sign(TONE), (TONE > 0).astype(np.float32)):
        assert model((values, RATE)) == model(Waveform(values, RATE))
