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


WITHOUT_LENGTH = {"PAF", "PVF", "IRCAM", "RAW", "SD2"}  # nothing in the file says how long it is
CODECS = [
    (container, subtype)
    for container in sorted({*soundfile.available_formats()} - WITHOUT_LENGTH)
    for subtype in soundfile.available_subtypes(container)
    if (container, subtype) != ("AIFF", "DWVW_12")  # libsndfile lists it, and does not write it
    and not subtype.startswith("MPEG_LAYER_II")
    and (container, subtype) != ("MP3", "MPEG_LAYER_I")
]


@pytest.mark.parametrize(("container", "subtype"), CODECS)
def test_a_file_that_is_cut_off_is_refused(container: str, subtype: str) -> None:
    stream = io.BytesIO()
    rate = 8000 if container == "WVE" else RATE
    values = noise(0.25)
    soundfile.write(stream, values, rate, format=container, subtype=subtype)
    data = stream.getvalue()
    if container == "XI":  # libsndfile leaves the length out
        data = data[:298] + struct.pack("<I", len(data) - 338) + data[302:]
    assert len(read_samples(data)[0]) >= len(values)
    for share in (0.995, 0.5, 0.1):
        part = data[: int(len(data) * share)]
        readers = (read_samples,) if container == "FLAC" else (read_samples, sound_seconds)
        for read in readers:
            with pytest.raises(InputError, match=r"the given bytes: (the sound is cut off|the sound cannot be|not a )"):
                read(part)


@pytest.mark.parametrize("container", ["AVR", "MAT4", "MAT5", "MPC2K", "SDS", "VOC", "WVE"])
def test_containers_without_chunks_hold_two_channels_and_more_behind_the_sound(container: str) -> None:
    stream = io.BytesIO()
    values = noise(0.2).reshape(-1, 1 if container in ("SDS", "WVE") else 2)
    soundfile.write(stream, values, 8000 if container == "WVE" else RATE, format=container)
    data = stream.getvalue()
    assert len(read_samples(data)[0]) == len(values)
    with pytest.raises(InputError, match=rf"its header announces a file of \d+ bytes, {len(data) - 4} are there"):
        sound_seconds(data[:-4])


def test_a_big_endian_mat4_that_is_cut_off_is_refused() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, noise(0.2), RATE, format="MAT4", endian="BIG")
    data = stream.getvalue()
    assert len(read_samples(data)[0]) == len(noise(0.2))
    with pytest.raises(InputError, match="the sound is cut off"):
        read_samples(data[: len(data) // 2])


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
