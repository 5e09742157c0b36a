"""MP3: parts equal the whole, sample for sample, and nothing is written to standard error."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.codec.context import Flags

from mmprefix.errors import InputError
from mmprefix.media.audio import read_samples, sound_seconds

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


def bursts(rate: int, seconds: float = 5.0, channels: int = 1) -> np.ndarray:
    """Noise that comes and goes (C, S): frames of few bytes leave theirs to those of many."""
    time = np.arange(int(rate * seconds)) / rate
    noise = 0.2 * np.random.default_rng(0).standard_normal((channels, len(time)))
    return (noise * (np.sin(2 * np.pi * 1.3 * time) > 0)).astype(np.float32)


def by_lame(values: np.ndarray, rate: int, bit_rate: int, xing: bool = True) -> bytes:
    """MP3 with an ID3 tag as FFmpeg writes it; ``xing``: with a header frame. A bit rate of 0 is a variable one."""
    stream, layout = io.BytesIO(), "mono" if len(values) == 1 else "stereo"
    with av.open(stream, "w", format="mp3", options={} if xing else {"write_xing": "0"}) as container:
        track = container.add_stream("libmp3lame", rate=rate, layout=layout, bit_rate=bit_rate or 64000)
        if not bit_rate:
            track.codec_context.flags |= Flags.qscale
            track.codec_context.global_quality = 5 * 118
        frame = av.AudioFrame.from_ndarray(values, format="fltp", layout=layout)
        frame.rate = rate
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return stream.getvalue()


def variable(values: np.ndarray, rate: int, level: float) -> bytes:
    """MP3 of variable bit rate as libsndfile writes it."""
    stream = io.BytesIO()
    soundfile.write(stream, values.T, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=level)
    return stream.getvalue()


FILES = {
    "44.1 kHz, 32 kbit/s": lambda: by_lame(bursts(44100), 44100, 32000),
    "48 kHz, stereo": lambda: by_lame(bursts(48000, channels=2), 48000, 128000),
    "16 kHz, 24 kbit/s": lambda: by_lame(bursts(16000), 16000, 24000),
    "8 kHz, 8 kbit/s": lambda: by_lame(bursts(8000), 8000, 8000),
    "no header frame": lambda: by_lame(bursts(22050), 22050, 32000, xing=False),
    "variable, no header frame": lambda: by_lame(bursts(44100, channels=2), 44100, 0, xing=False),
    "variable, 16 kHz, no header frame": lambda: by_lame(bursts(16000), 16000, 0, xing=False),
    "variable": lambda: variable(bursts(44100, channels=2), 44100, 0.8),
    "variable, short": lambda: variable(bursts(44100, 1.0), 44100, 0.5),
    "variable, 16 kHz": lambda: variable(bursts(16000), 16000, 0.9),
}


@pytest.mark.parametrize("name", FILES)
def test_a_part_equals_the_same_samples_of_the_whole(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = FILES[name]()
    with av.open(io.BytesIO(data), "r") as container:  # FFmpeg has an MP3 decoder of its own
        whole = np.concatenate([frame.to_ndarray().mean(axis=0) for frame in container.decode(audio=0)])
    values, rate = read_samples(data)
    assert len(values) == len(whole) == round(sound_seconds(data) * rate)
    np.testing.assert_allclose(values, whole, rtol=0, atol=1e-5)
    for first in np.random.default_rng(1).integers(1, len(values) - rate // 4, 12):
        part, _ = read_samples(data, first / rate, first / rate + 0.25)
        np.testing.assert_allclose(part, values[first:][: len(part)], rtol=0, atol=1e-6, err_msg=f"from {first}")
        assert abs(len(part) - rate / 4) <= 1
    assert capfd.readouterr().err == ""


def test_the_part_of_an_mp3_that_failed(capfd: pytest.CaptureFixture[str]) -> None:
    file = CASES / "10-mp3-part" / "noise.mp3"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    whole, rate = read_samples(file)
    for start in np.arange(0.5, 5, 0.25):
        part, _ = read_samples(file, float(start), float(start) + 0.5)
        np.testing.assert_array_equal(part, whole[round(start * rate) :][: len(part)])
    assert capfd.readouterr().err == ""


def id3(size: int) -> bytes:
    """ID3 tag (version 2.4) with ``size`` bytes of a cover."""
    frame = b"APIC" + struct.pack(">I", size) + b"\0\0" + bytes(size)
    digits = [len(frame) >> shift & 127 for shift in (21, 14, 7, 0)]
    return b"ID3\x04\0\0" + bytes(digits) + frame


def test_tags_around_the_sound_change_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    plain = variable(bursts(44100, 2.0), 44100, 0.7)
    values, _ = read_samples(plain)
    before, behind = id3(60_000), b"TAG" + bytes(125)
    for data in (before + plain, plain + behind, plain + b"APETAGEX" + bytes(3000), before + plain + bytes(5000)):
        np.testing.assert_array_equal(read_samples(data)[0], values)
        assert sound_seconds(data) == 2.0
    twice = before + plain + before + plain + behind
    np.testing.assert_array_equal(read_samples(twice)[0], np.concatenate([values, values]))
    assert capfd.readouterr().err == ""


def test_sounds_without_a_header_frame_behind_each_other() -> None:
    with_header, without = (by_lame(bursts(16000, 1.0), 16000, 24000, xing=xing) for xing in (True, False))
    first, second = read_samples(with_header)[0], read_samples(without)[0]
    np.testing.assert_array_equal(read_samples(with_header + without)[0], np.concatenate([first, second]))
    np.testing.assert_array_equal(read_samples(without + with_header)[0], np.concatenate([second, first]))
    damaged = without[:1000] + bytes(range(256)) + without[1000:]  # other bytes between two frames are skipped
    assert abs(len(read_samples(damaged)[0]) - len(second)) <= 576
    with pytest.raises(InputError, match="cut off: its last frame is not whole"):
        read_samples(without[:-5])


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.1])
def test_an_mp3_that_is_cut_off_is_refused_in_silence(share: float, capfd: pytest.CaptureFixture[str]) -> None:
    for data in (variable(bursts(44100, 2.0), 44100, 0.7), by_lame(bursts(44100), 44100, 32000)):
        with pytest.raises(InputError, match="the given bytes: the sound is cut off"):
            read_samples(data[: int(len(data) * share)])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("hole", [1000, 12_000])
def test_a_hole_of_zeros_is_no_end(hole: int) -> None:
    stream = io.BytesIO()
    values = 0.1 * np.random.default_rng(0).standard_normal(16000 * 8)
    soundfile.write(stream, values, 16000, format="MP3")
    data = stream.getvalue()
    data = data[data.index(b"\xff\xf3", 4) :]  # without the header frame
    assert len(read_samples(data + bytes(3000))[0]) >= len(values)  # padding
    middle = len(data) // 2
    with pytest.raises(InputError, match="the sound is cut off: there is a hole in it at byte"):
        read_samples(data[:middle] + bytes(hole) + data[middle + hole :])
