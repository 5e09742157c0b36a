"""Sounds of every codec: whole, in parts, and several one behind the other, compared with soundfile and PyAV."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mmprefix.errors import InputError
from mmprefix.media import sound_file
from mmprefix.media.audio import read_samples, sound_seconds

RATE = 8000
CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
# RAW has no header, SD2 writes a second file, DWVW soundfile itself cannot read from a stream
LEFT_OUT = {"RAW", "SD2"}
CODECS = [
    (container, codec)
    for container in soundfile.available_formats()
    for codec in soundfile.available_subtypes(container)
    if container not in LEFT_OUT and not codec.startswith("DWVW") and soundfile.check_format(container, codec)
]


def speech(seconds: float = 3.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Tone that swells, with noise (S,), float32."""
    time = np.arange(int(rate * seconds)) / rate
    rng = np.random.default_rng(seed)
    swell = 0.2 * np.sin(2 * np.pi * 300 * time) * np.sin(2 * np.pi * 3 * time)
    return (swell + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


def encoded(values: np.ndarray, rate: int, container: str, codec: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, values, rate, format=container, subtype=codec)
    return stream.getvalue()


def test_every_codec_is_read_whole_and_in_parts() -> None:
    """Samples equal those of one uninterrupted read by soundfile; a part equals the same samples of the whole."""
    codecs = 0
    for container, codec in CODECS:
        try:
            data = encoded(speech(), RATE, container, codec)
        except soundfile.SoundFileError:  # libsndfile reads it, but does not write it
            continue
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            rate, expected = sound.samplerate, sound.read(4 * RATE, dtype="float32")
        values, own = read_samples(data)
        assert own == rate, (container, codec)
        np.testing.assert_array_equal(values, expected, err_msg=f"{container} {codec}")
        assert sound_seconds(data) == pytest.approx(len(values) / rate)
        for first, count in ((1, 1000), (len(values) // 2, 1500), (len(values) - 700, 700)):
            part, _ = read_samples(data, first / rate, (first + count) / rate)
            np.testing.assert_allclose(
                part, values[first : first + count], rtol=0, atol=1e-7, err_msg=f"{container} {codec} {first}"
            )
        codecs += 1
    assert codecs > 80


@pytest.mark.parametrize("name", ["GSM610", "NMS_ADPCM_16"])
def test_telephone_codecs_that_failed(name: str) -> None:
    file = CASES / "08-wav-gsm-adpcm" / f"{name}.wav"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    with soundfile.SoundFile(file) as sound:
        expected = sound.read(sound.frames, dtype="float32")
    np.testing.assert_array_equal(read_samples(file)[0], expected)


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of decoding do not change the samples of a file."""
    for container, codec in (
        ("MP3", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("WAV", "GSM610"),
        ("WAV", "IMA_ADPCM"),
    ):
        data = encoded(speech(), RATE, container, codec)
        whole, _ = read_samples(data)
        with monkeypatch.context() as patch:
            patch.setattr(sound_file, "BLOCK", 1000)
            np.testing.assert_array_equal(read_samples(data)[0], whole, err_msg=container)
            np.testing.assert_allclose(read_samples(data, 0.5, 2.5)[0], whole[4000:20000], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("container", "codec"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_all_sounds_of_a_chain_are_read(container: str, codec: str | None) -> None:
    links = [encoded(speech(seconds, 16000, seed), 16000, container, codec) for seed, seconds in enumerate((1.5, 1, 2))]
    singles = [read_samples(link)[0] for link in links]
    chain, joined = b"".join(links), np.concatenate(singles)
    values, rate = read_samples(chain)
    np.testing.assert_array_equal(values, joined)
    assert sound_seconds(chain) == pytest.approx(len(joined) / rate)
    for first, last in ((0.2, 0.9), (1.2, 1.7), (1.4, 3.9), (2.6, 4.4)):
        part, _ = read_samples(chain, first, last)
        np.testing.assert_allclose(part, joined[round(first * rate) : round(last * rate)], rtol=0, atol=1e-6)
    with av.open(
        io.BytesIO(chain), "r"
    ) as opened:  # FFmpeg counts a little more: it keeps what encoders add at the ends
        assert sum(frame.samples / frame.sample_rate for frame in opened.decode(audio=0)) >= 4.4


def test_a_chain_of_two_rates_has_the_rate_of_its_first_sound() -> None:
    links = [encoded(speech(1.0, rate), rate, "OGG", "VORBIS") for rate in (16000, 44100)]
    values, rate = read_samples(links[0] + links[1])
    assert (rate, len(values)) == (16000, 32000)
    slow = read_samples(links[1])[0]
    spectrum = np.abs(np.fft.rfft(values[16000:]))
    assert abs(int(spectrum.argmax()) - int(np.abs(np.fft.rfft(slow)).argmax())) <= 1  # the same tone, in Hz
    part, _ = read_samples(links[0] + links[1], 0.5, 1.5)
    np.testing.assert_allclose(part, values[8000:24000], rtol=0, atol=1e-6)


def test_a_chain_is_refused_as_a_whole() -> None:
    """A link that is cut off, of 1 Hz, or longer than the limit is not hidden by the others."""
    link = encoded(speech(), 16000, "OGG", "VORBIS")
    cut = link[: link.rfind(b"OggS")]
    with pytest.raises(InputError, match="cut off: its last page has no end mark"):
        read_samples(cut + link)
    with pytest.raises(InputError, match="cut off: stream 2 of it has no end mark"):
        read_samples(link + cut)
    with pytest.raises(InputError, match="holds more than 1000 sounds one behind the other"):
        read_samples(encoded(speech(0.05), 16000, "OGG", "VORBIS") * 1100)


def test_the_limit_of_seconds_holds_for_all_sounds_of_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    link = encoded(speech(1.0), 16000, "OGG", "VORBIS")
    monkeypatch.setenv("MMPREFIX_MAX_SECONDS", "1.2")
    assert len(read_samples(link)[0]) == len(speech(1.0))
    for container, codec in (("OGG", "VORBIS"), ("MP3", None), ("WAV", "GSM610")):
        data = encoded(speech(1.0), RATE, container, codec)
        with pytest.raises(InputError, match="seconds, the limit is 1"):
            read_samples(data * 2 if container != "WAV" else encoded(speech(2.0), RATE, container, codec))
        assert len(read_samples(data, 0.2, 0.7)[0]) == RATE // 2


def test_a_part_of_what_pyav_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the part is kept, and the limit counts it alone."""
    file = tmp_path / "speech.m4a"
    with av.open(str(file), "w") as container:
        track = container.add_stream("aac", rate=16000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([speech(3.0, 16000)] * 2), format="fltp", layout="stereo")
        frame.rate = 16000
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    whole, _ = read_samples(file)
    monkeypatch.setenv("MMPREFIX_MAX_SECONDS", "1.5")
    with pytest.raises(InputError, match="seconds, the limit is 2"):
        read_samples(file)
    for first, last in product((0.0, 0.3, 1.7), (2.0, 2.2)):
        if last - first <= 1.5:
            part, _ = read_samples(file, first, last)
            np.testing.assert_array_equal(part, whole[round(first * 16000) : round(last * 16000)])
