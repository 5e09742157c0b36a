"""Audio of every format, whole and broken, in files and in memory."""

from __future__ import annotations

import pickle
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from mmprefix.errors import InputError
from mmprefix.media.audio import read_samples, read_waveform, sound_seconds
from mmprefix.media.source import Waveform
from tiny.media import RATE, tone


@pytest.mark.parametrize(("kind", "worst"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.05), ("mp3", 0.05)])
def test_every_sound_format_is_read_mixed_and_resampled(tmp_path: Path, kind: str, worst: float) -> None:
    file = tmp_path / f"tone.{kind}"
    soundfile.write(file, np.stack([tone(), 0.5 * tone()], axis=1), RATE)
    values, rate = read_samples(file)
    assert rate == RATE
    assert values.shape == (RATE,)
    assert np.abs(values - 0.75 * tone())[200:-200].max() < worst
    wave = read_waveform(file, 16000)
    assert wave.dtype == torch.float32
    assert wave.shape == (16000,)
    ideal = torch.from_numpy(0.75 * tone(rate=16000))
    assert (wave - ideal)[400:-400].abs().max() < worst
    assert sound_seconds(file) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_a_time_span_is_a_slice_of_the_whole(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"noise.{kind}"
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(3 * RATE), RATE)
    whole, _ = read_samples(file)
    part, _ = read_samples(file, 1.0, 2.5)
    np.testing.assert_allclose(part, whole[RATE : round(2.5 * RATE)], atol=1e-4)
    assert len(read_samples(file, 2.0, 9.0)[0]) == RATE  # an end beyond the file is the file's end
    assert sound_seconds(file, 2.0, 9.0) == pytest.approx(1.0)


def test_resampling_leaves_no_alias() -> None:
    high = Waveform(tone(rate=44100, hertz=12000.0), 44100)  # above the new limit of 8 kHz
    assert read_waveform(high, 16000)[1000:-1000].abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("share", [0.999, 0.5, 0.02, 0.0])
def test_a_sound_that_is_cut_off_is_refused_by_name(tmp_path: Path, kind: str, share: float) -> None:
    whole, file = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
    soundfile.write(whole, 0.1 * np.random.default_rng(1).standard_normal((2 * RATE, 2)), RATE)
    data = whole.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    for source, name in ((file, f"cut.{kind}"), (file.read_bytes(), "the given bytes")):
        with pytest.raises(InputError, match=name):
            read_waveform(source, 16000)


def test_an_ogg_cut_between_two_pages_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pages.ogg"
    soundfile.write(file, 0.1 * np.random.default_rng(2).standard_normal(4 * RATE), RATE)
    data = file.read_bytes()
    file.write_bytes(data[: data.rfind(b"OggS")])
    assert soundfile.info(file).frames > 0  # libsndfile itself sees nothing wrong
    with pytest.raises(InputError, match=r"pages\.ogg: the sound is cut off"):
        sound_seconds(file)


def test_a_wav_without_a_length_from_a_pipe_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "pipe.wav"
    soundfile.write(file, tone(), RATE)
    data = bytearray(file.read_bytes())
    position = data.index(b"data") + 4
    data[position : position + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert read_samples(bytes(data))[0].shape == (RATE,)


@pytest.mark.parametrize("name", ["text.wav", "text.ogg", "text.mp3", "text.flac", "text.raw", "text.m4a"])
def test_text_with_the_name_of_a_sound_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("This is no sound at all.\n" * 50)
    with pytest.raises(InputError, match=name) as error:
        read_waveform(tmp_path / name, 16000)
    assert str(error.value).count(name) == 1  # nor does the reason, which FFmpeg gives, repeat it


def test_a_time_span_without_samples_is_refused(tmp_path: Path) -> None:
    empty, short = tmp_path / "empty.wav", tmp_path / "short.wav"
    soundfile.write(empty, np.zeros(0), RATE)
    soundfile.write(short, tone(), RATE)
    cases = [
        (empty, 0.0, None, "length zero"),
        (short, 1.0, None, "beyond the end"),
        (short, 7.0, 8.0, "beyond the end"),
        (short, 0.5, 0.5, "0 <= start < end"),
        (short, -1.0, None, "0 <= start < end"),
        (short, 0.5, 0.50001, "no sample"),
    ]
    for file, start, end, reason in cases:
        for read in (read_samples, sound_seconds):
            with pytest.raises(InputError, match=rf"{file.name}.*{reason}"):
                read(file, start, end)
    with pytest.raises(InputError, match="too short"):
        read_waveform(Waveform(tone(0.0001), RATE), 100)
    with pytest.raises(InputError, match="-5 Hz"):
        read_waveform(short, -5)


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = tone()
    values[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", values, RATE, subtype="FLOAT")
    with pytest.raises(InputError, match=r"nan\.wav.*NaN"):
        read_waveform(tmp_path / "nan.wav", RATE)


def test_waveforms_in_memory() -> None:
    ideal = torch.from_numpy(tone())
    for values in (
        tone(),
        torch.from_numpy(tone()),
        tone().astype(np.float64),
        np.stack([tone(), tone()]),
        np.rint(tone() * 2**15).astype(np.int16),
        torch.from_numpy(np.rint(tone() * 2.0**31).astype(np.int32)),
    ):
        assert (read_waveform(Waveform(values, RATE), RATE) - ideal).abs().max() < 1e-4
    eight = np.rint(tone() * 128 + 128).astype(np.uint8)  # 8-bit WAV counts from 0 with silence at 128
    assert (read_waveform(Waveform(eight, RATE), RATE) - ideal).abs().max() < 1e-2
    assert len(read_waveform(Waveform(tone(), RATE), RATE, 0.25, 0.5)) == pytest.approx(RATE / 4, abs=1)
    assert sound_seconds(Waveform(np.zeros((2, RATE)), RATE)) == 1.0
    for values, reason in ((np.zeros((RATE, 33)), "channels first"), (np.zeros(9, bool), "bool")):
        with pytest.raises(InputError, match=reason):
            read_waveform(Waveform(values, RATE), RATE)
    with pytest.raises(InputError, match="rate of 0 Hz"):
        read_waveform(Waveform(tone(), 0), RATE)


def test_sources_are_pickled(tmp_path: Path) -> None:
    wave = pickle.loads(pickle.dumps(Waveform(tone(), RATE)))
    assert read_waveform(wave, RATE).shape == (RATE,)


def test_m4a_is_read_by_pyav_and_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tone.m4a"
    with av.open(str(file), "w") as container:
        track = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone()[None], format="fltp", layout="mono")
        frame.rate = RATE
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    assert len(read_waveform(file, RATE)) == pytest.approx(RATE, rel=0.15)
    monkeypatch.setitem(sys.modules, "av", None)  # to Python, a package that is not installed
    with pytest.raises(InputError, match=r'tone\.m4a: not a sound .* by PyAV: pip install "mmprefix\[av\]"'):
        read_waveform(file, RATE)
