"""An open video: its length, rate and size, and frames by time, against PyAV's own decode of the whole."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmprefix.errors import InputError
from mmprefix.media.video_pyav import open_video_file
from tiny.videos import SIZE, decoded, save_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of 30 frames, a key frame every 10."""
    return save_video(tmp_path_factory.mktemp("video") / "clip.mp4", count=30, key_every=10)


def test_what_the_container_tells(clip: Path) -> None:
    with clip.open("rb") as stream, open_video_file(stream, "clip.mp4") as video:
        assert (video.seconds, video.rate, video.size) == (pytest.approx(3.0, abs=0.02), 10.0, SIZE)


def test_a_frame_is_shown_until_the_next_one(clip: Path) -> None:
    frames, starts = decoded(clip)
    times = [start + part for start in starts for part in (0.0, 0.09)]
    with clip.open("rb") as stream, open_video_file(stream, "clip.mp4") as video:
        shown = video.frames_at(times)  # both times of a frame give it once
        late = video.frames_at([2.05])  # a seek back to the key frame at 2.0 s, after the end was read
    assert len(shown) == len(frames)
    for ours, theirs in zip([*shown, *late], [*frames, frames[20]], strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize(("start", "end", "count"), [(0.0, 3.0, 30), (0.0, 1.0, 10), (1.05, 1.25, 3), (2.9, 3.0, 1)])
def test_frames_are_counted_between_two_times(clip: Path, start: float, end: float, count: int) -> None:
    with clip.open("rb") as stream, open_video_file(stream, "clip.mp4") as video:
        assert video.count_frames(start, end) == count


def test_times_behind_the_end_are_refused_by_name(clip: Path) -> None:
    with clip.open("rb") as stream, open_video_file(stream, "clip.mp4") as video:
        with pytest.raises(InputError, match=r"^clip\.mp4: the video is cut off: it has no frame at 4\.000 s$"):
            video.frames_at([1.0, 4.0])
        with pytest.raises(InputError, match=r"^clip\.mp4: the video is cut off: 4\.000 s are announced$"):
            video.count_frames(0.0, 4.0)


def test_a_sound_holds_no_video_track() -> None:
    stream = BytesIO()
    soundfile.write(stream, np.zeros(800), 8000, format="WAV")
    with pytest.raises(InputError, match=r"^a\.wav: holds no video track$"), open_video_file(stream, "a.wav"):
        pass
