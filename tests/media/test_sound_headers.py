"""Headers of sound files: lengths that pipes leave behind, files that are cut off, in every container."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mmprefix.errors import InputError
from mmprefix.media.audio import read_samples, sound_seconds

RATE = 16000
CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
PLACEHOLDERS = (0, 0x7FFFF000, 0x7FFFFFDB, 0x7FFFFFFC, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF)


def noise(seconds: float = 1.0) -> np.ndarray:
    """Noise (S,), float32."""
    return (0.1 * np.random.default_rng(0).standard_normal(int(RATE * seconds))).astype(np.float32)


def encoded(container: str, subtype: str = "PCM_16") -> bytearray:
    """The noise as a sound file."""
    stream = io.BytesIO()
    soundfile.write(stream, noise(), RATE, format=container, subtype=subtype)
    return bytearray(stream.getvalue())


def with_length(data: bytearray, length: int) -> bytes:
    """WAV with ``length`` in its data chunk, and in RIFF what a program would write that believes it."""
    position = data.index(b"data") + 4
    copy = bytearray(data)
    copy[4:8] = struct.pack("<I", min(0xFFFFFFFF, length + 36))
    copy[position : position + 4] = struct.pack("<I", length)
    return bytes(copy)


@pytest.mark.parametrize("length", PLACEHOLDERS)
def test_a_wav_of_a_pipe_is_whole(length: int) -> None:
    whole = encoded("WAV")
    values, rate = read_samples(with_length(whole, length))
    expected, _ = soundfile.read(io.BytesIO(bytes(whole)), dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(values, expected)
    assert sound_seconds(with_length(whole, length)) == 1.0
    with av.open(io.BytesIO(with_length(whole, length)), "r") as container:  # so does FFmpeg
        assert sum(frame.samples for frame in container.decode(audio=0)) == RATE


def test_other_containers_of_pipes_are_whole() -> None:
    expected = noise()
    au, aiff, caf, rf64, w64 = (encoded(name) for name in ("AU", "AIFF", "CAF", "RF64", "W64"))
    au[8:12] = b"\xff" * 4
    at = aiff.index(b"SSND") + 4
    aiff[at : at + 4] = struct.pack(">I", 0x7F000008)  # as SoX writes it
    at = caf.index(b"data") + 4
    caf[at : at + 8] = struct.pack(">q", -1)
    for data in (au, aiff, caf):
        assert np.abs(read_samples(bytes(data))[0] - expected).max() < 1e-4
    for length in (0, (1 << 64) - 1):
        at = rf64.index(b"ds64") + 16
        rf64[at : at + 8] = struct.pack("<Q", length)
        assert np.abs(read_samples(bytes(rf64))[0] - expected).max() < 1e-4
    at = w64.index(b"data\xf3\xac") + 16
    w64[at : at + 8] = struct.pack("<q", 24)  # a length of zero: it counts its own header
    assert np.abs(read_samples(bytes(w64))[0] - expected).max() < 1e-4


def test_bw64_is_read_as_the_rf64_that_it_is() -> None:
    data = encoded("RF64")
    data[:4] = b"BW64"
    assert np.abs(read_samples(bytes(data))[0] - noise()).max() < 1e-4


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "SVX"])
@pytest.mark.parametrize("share", [0.995, 0.5, 0.1])
def test_a_file_that_is_cut_off_is_refused(container: str, share: float) -> None:
    data = encoded(container)
    assert len(read_samples(bytes(data))[0]) == RATE
    part = bytes(data[: int(len(data) * share)])
    for read in (read_samples, sound_seconds):
        with pytest.raises(InputError, match=r"the given bytes: (the sound is cut off|not a sound that can be read)"):
            read(part)


def test_a_wav_without_sound_is_empty_though_other_chunks_follow() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(0), RATE, format="WAV")
    data = stream.getvalue() + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(InputError, match="the sound has length zero"):
        read_samples(data)


def test_an_ulaw_sphere_file_that_is_cut_off_is_refused() -> None:
    data = bytes(encoded("NIST", "ULAW"))
    assert len(read_samples(data)[0]) == RATE
    with pytest.raises(InputError, match="cut off: its header announces a file of 17024 bytes, 17000 are there"):
        read_samples(data[:17000])


@pytest.mark.parametrize("name", ["sox", "arecord", "zero"])
def test_sounds_of_pipes_that_failed(name: str) -> None:
    file = CASES / "07-wav-length-of-pipes" / f"{name}.wav"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    assert len(read_samples(file)[0]) == (file.stat().st_size - 44) // 2


def test_a_cut_off_rf64_that_was_accepted() -> None:
    file = CASES / "f08-rf64-cut-off-accepted" / "rf64-trunc.wav"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    with pytest.raises(InputError, match="its header announces 176400 bytes of sound, 88148 are there"):
        sound_seconds(file)
