"""Files that PyAV reads: cut off anywhere they are refused in one line, whole ones are read, with what may follow."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mmprefix.errors import InputError
from mmprefix.media.audio import read_samples, sound_seconds
from mmprefix.media.video import read_frames, video_header
from tiny.videos import save_video

RATE = 16000


def spoken(container: str, **options: str) -> bytes:
    """A second of noise as AAC in ``container`` (mp4, adts ...)."""
    values = (0.1 * np.random.default_rng(0).standard_normal((1, RATE))).astype(np.float32)
    with (
        tempfile.NamedTemporaryFile() as file,  # an index in front is written by opening the file again
        av.open(file.name, "w", format=container, options=options) as output,
    ):
        track: Any = output.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(values, format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        for packet in [*track.encode(frame), *track.encode()]:
            output.mux(packet)
        output.close()
        return Path(file.name).read_bytes()


SOUNDS = {
    "m4a": lambda: spoken("ipod"),
    "mp4, index first": lambda: spoken("mp4", movflags="faststart"),
    "mov": lambda: spoken("mov"),
    "streamed mp4": lambda: spoken("mp4", movflags="frag_keyframe+empty_moov+default_base_moof"),
    "adts": lambda: spoken("adts"),
}


@pytest.mark.parametrize("kind", SOUNDS)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.9, 0.997])
def test_a_sound_that_is_cut_off_is_refused_in_one_line(kind: str, share: float, tmp_path: Path) -> None:
    whole = SOUNDS[kind]()
    assert len(read_samples(whole)[0]) == pytest.approx(RATE, abs=3000)
    file = tmp_path / "cut.part"
    file.write_bytes(whole[: int(len(whole) * share)])
    for read in (read_samples, sound_seconds):
        with pytest.raises(InputError, match=r"cut\.part: a sound that is cut off: its ") as error:
            read(file)
        assert "\n" not in str(error.value)


def test_a_message_says_which_length_goes_beyond_the_end() -> None:
    with pytest.raises(InputError, match=r"its atom 'mdat' has \d{4,} bytes, \d{4,} are there"):
        read_samples(SOUNDS["mp4, index first"]()[:-50])
    whole = SOUNDS["m4a"]()
    with pytest.raises(InputError, match="its index, the atom 'moov', is not there"):
        read_samples(whole[: whole.rindex(b"moov") - 4])
    with pytest.raises(InputError, match=r"its last frame has \d+ bytes, \d+ are there"):
        read_samples(SOUNDS["adts"]()[:-3])


@pytest.mark.parametrize("more", [b"\0\0\0\x40free1234", b"\0" * 3, b"\0\0\0\0mdat1234"])
def test_what_may_follow_a_whole_file_does_not_matter(more: bytes) -> None:
    whole = SOUNDS["m4a"]()
    np.testing.assert_array_equal(read_samples(whole + more)[0], read_samples(whole)[0])


def test_a_tag_behind_adts_does_not_matter() -> None:
    whole = SOUNDS["adts"]()
    np.testing.assert_array_equal(read_samples(whole + b"TAG".ljust(128, b"\0"))[0], read_samples(whole)[0])


def test_a_video_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = save_video(tmp_path / "whole.mp4", count=20, options={"movflags": "faststart"})
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * 0.95)])
    for read in (lambda: read_frames(file, 5), lambda: video_header(file)):
        with pytest.raises(InputError, match=r"whole\.mp4: a video that is cut off: its atom 'mdat' has "):
            read()
