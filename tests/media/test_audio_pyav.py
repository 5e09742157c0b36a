"""Sound decoded by PyAV: parts are slices of the whole, which is what soundfile reads."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmprefix.errors import InputError
from mmprefix.media.audio_pyav import DecodedSound, decode
from tiny.videos import save_video

RATE = 8000


@pytest.fixture(scope="module")
def content() -> bytes:
    """A WAV of two channels, three seconds."""
    values = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * RATE, 2))
    stream = BytesIO()
    soundfile.write(stream, values, RATE, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def test_the_whole_is_what_soundfile_reads_mixed_down(content: bytes) -> None:
    expected, rate = soundfile.read(BytesIO(content), dtype="float32")
    sound = decode(BytesIO(content), "a.wav")
    assert (sound.rate, sound.frames, sound.offset) == (rate, len(expected), 0)
    np.testing.assert_allclose(sound.read(0, sound.frames), expected.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(("start", "until"), [(0.0, 1.0), (1.2, 2.0), (2.5, None), (0.0, 99.0)])
def test_a_part_is_a_slice_of_the_whole(content: bytes, start: float, until: float | None) -> None:
    whole, part = decode(BytesIO(content), "a.wav"), decode(BytesIO(content), "a.wav", start, until)
    first, last = round(start * RATE), round(min(until or 3.0, 3.0) * RATE)
    assert part.offset <= first
    assert part.frames >= last
    assert len(part.values) <= last - first + 2 * 4096  # what lies outside is not kept, but for a block on each side
    np.testing.assert_array_equal(part.read(first, last - first), whole.read(first, last - first))


def test_a_start_behind_the_end_keeps_nothing(content: bytes) -> None:
    sound = decode(BytesIO(content), "a.wav", start=5.0)
    assert (sound.frames, len(sound.values)) == (3 * RATE, 0)


def test_frames_count_from_the_file_s_first(content: bytes) -> None:
    sound = DecodedSound(RATE, 30, 10, np.arange(10.0, 30.0))
    assert sound.read(12, 3).tolist() == [12.0, 13.0, 14.0]
    assert sound.read(28, 5).tolist() == [28.0, 29.0]
    sound.close()


def test_files_without_a_sound_are_refused_by_name(tmp_path: Path) -> None:
    with save_video(tmp_path / "clip.mp4", count=5).open("rb") as stream, pytest.raises(InputError) as error:
        decode(stream, "clip.mp4")
    assert str(error.value) == "clip.mp4: holds no sound"
    with pytest.raises(InputError, match=r"^a\.wav: not a sound that can be read, or cut off"):
        decode(BytesIO(b"nothing"), "a.wav")


def test_the_limit_of_seconds_counts_what_is_kept(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPREFIX_MAX_SECONDS", "1")
    with pytest.raises(InputError, match=r"a\.wav: .* seconds, the limit is 1; .*MMPREFIX_MAX_SECONDS"):
        decode(BytesIO(content), "a.wav")
    assert len(decode(BytesIO(content), "a.wav", 2.5).values) > 0
