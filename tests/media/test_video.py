"""Videos of every container against PyAV's frames; folders and lists of pictures; broken and other files."""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mmprefix.errors import InputError
from mmprefix.media.source import FrameSequence
from mmprefix.media.video import pictures_in, read_frames, video_header
from tiny.videos import CODECS, SIZE, decoded, frame, save_pictures, save_video


def assert_same_frames(result: list[Image.Image], expected: list[Image.Image]) -> None:
    assert len(result) == len(expected)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def frames_at(file: Path, times: list[float]) -> list[Image.Image]:
    """Frames that a player shows at ``times``, each once, from a decode of the whole file."""
    frames, starts = decoded(file)
    indices = [max(i for i, start in enumerate(starts) if start <= time + 1e-9) for time in times]
    return [frames[i] for i in dict.fromkeys(indices)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds, 40 frames, a key frame every 12."""
    return save_video(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_frames_are_those_that_pyav_decodes_at_the_middles_of_the_slots(tmp_path: Path, suffix: str) -> None:
    file = save_video(tmp_path / f"clip{suffix}")
    header = video_header(file)
    assert header.seconds == pytest.approx(4.0, abs=0.02)
    assert (header.size, header.frames) == (SIZE, 40)
    assert video_header(file, decode=True).frames == 40
    middles = [header.seconds * (slot + 0.5) / 8 for slot in range(8)]
    frames = read_frames(file, 8)
    assert_same_frames(frames, frames_at(file, middles))
    assert len({picture.tobytes() for picture in frames}) == 8


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.3, 2.7), (3.5, None), (2.0, 99.0), (1.21, 1.29)])
def test_start_and_end_cut_the_video(clip: Path, start: float, end: float | None) -> None:
    last = min(end or 4.0, 4.0)
    middles = [start + (last - start) * (slot + 0.5) / 5 for slot in range(5)]
    assert_same_frames(read_frames(clip, 5, start, end), frames_at(clip, middles))
    assert video_header(clip, start, end).seconds == pytest.approx(last - start)
    assert video_header(clip, start, end, decode=True).frames == len(
        [i for i in range(40) if i / 10 < last - 1e-9 and (i + 1) / 10 > start + 1e-9]
    )


def test_a_short_video_gives_each_frame_once(clip: Path, tmp_path: Path) -> None:
    assert_same_frames(read_frames(clip, 400), decoded(clip)[0])
    still = save_video(tmp_path / "still.mp4", count=1)
    assert_same_frames(read_frames(still, 8), decoded(still)[0])


def test_a_long_video_is_seeked_not_decoded_whole(tmp_path: Path) -> None:
    """Three frames of a minute: key frames are 5 seconds apart, so most of the file is never decoded."""
    file = save_video(tmp_path / "long.mp4", count=600, key_every=50)
    assert_same_frames(read_frames(file, 3), frames_at(file, [10.0, 30.0, 50.0]))
    late = save_video(tmp_path / "late.mp4", count=600, key_every=10000)  # one key frame, at the start
    assert_same_frames(read_frames(late, 3), frames_at(late, [10.0, 30.0, 50.0]))


def test_bytes_and_zip_members_equal_the_file(clip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(clip, "in/clip.mp4")
    expected = read_frames(clip, 4)
    assert_same_frames(read_frames(clip.read_bytes(), 4), expected)
    assert_same_frames(read_frames(f"{tmp_path}/all.zip::in/clip.mp4", 4), expected)


def test_a_rotated_video_is_upright(clip: Path, tmp_path: Path) -> None:
    """Telephones write the rotation into the track header (ISO/IEC 14496-12, 8.3.2: a matrix of nine 16.16 numbers)."""
    data = bytearray(clip.read_bytes())
    matrix = (
        data.index(b"tkhd") + 4 + 4 + 4 + 4 + 4 + 4 + 4 + 8 + 2 + 2 + 2 + 2
    )  # version 0: sizes of the fields before
    quarter = (0, 1 << 16, 0, -(1 << 16), 0, 0, SIZE[1] << 16, 0, 1 << 30)  # clockwise, as a player shows it
    data[matrix : matrix + 36] = struct.pack(">9i", *quarter)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    expected = [picture.transpose(Image.Transpose.ROTATE_270) for picture in read_frames(clip, 3)]
    assert_same_frames(read_frames(turned, 3), expected)


# ------------------------------------------------------------------------------------------------------ single pictures


def test_a_folder_of_numbered_pictures_is_a_video_of_one_picture_a_second(tmp_path: Path) -> None:
    files = save_pictures(tmp_path / "pictures", 12)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    (tmp_path / "pictures" / ".hidden.png").write_bytes(b"no picture")
    assert pictures_in(tmp_path / "pictures") == files  # 2.png before 10.png
    assert tuple(video_header(tmp_path / "pictures")) == (12.0, SIZE, 12)
    assert_same_frames(read_frames(tmp_path / "pictures", 4), [frame(n, 12) for n in (1, 4, 7, 10)])
    assert_same_frames(read_frames(tmp_path / "pictures", 50), [frame(n, 12) for n in range(12)])
    assert_same_frames(read_frames(tmp_path / "pictures", 50, 3.0, 5.0), [frame(n, 12) for n in (3, 4)])
    assert video_header(tmp_path / "pictures", 3.0, 5.0, decode=True).frames == 2


def test_a_list_of_pictures_has_the_given_rate(tmp_path: Path) -> None:
    files = save_pictures(tmp_path / "pictures", 12)
    mixed: list[Any] = [files[0], str(files[1]), files[2].read_bytes(), frame(3, 12), *files[4:]]
    clip = FrameSequence(mixed, rate=4.0)
    assert video_header(clip, decode=True).seconds == 3.0
    assert_same_frames(read_frames(clip, 12), [frame(n, 12) for n in range(12)])
    assert_same_frames(read_frames(clip, 9, 1.0, 2.0), [frame(n, 12) for n in range(4, 8)])


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}], ids=["index last", "index first"])
def test_a_truncated_video_is_refused_by_name(tmp_path: Path, share: float, options: dict[str, str]) -> None:
    """With its index first, a truncated file can be opened; reading the missing frames fails."""
    whole = save_video(tmp_path / "whole.mp4", count=100, options=options).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"cut\.mp4: "):
        read_frames(tmp_path / "cut.mp4", 10)
    with pytest.raises(InputError, match=r"cut\.mp4: "):
        video_header(tmp_path / "cut.mp4", decode=True)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (4.0, None, "beyond the end of the video, 4.000 s"),
        (9.0, 10.0, "beyond the end"),
        (2.0, 1.0, "give 0 <= start < end"),
        (-1.0, None, "give 0 <= start < end"),
    ],
)
def test_parts_outside_the_video_are_refused(clip: Path, start: float, end: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_frames(clip, 4, start, end)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("This is no video at all.\n" * 50)
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_text("no picture")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "text.mp4", r"text\.mp4: not a video"),
        (tmp_path / "gone.mp4", r"gone\.mp4: no such file"),
        (tmp_path / "none", "none: holds no picture"),
        (tmp_path / "broken", r"1\.png: not a picture"),
        (FrameSequence([]), "holds no picture"),
        (FrameSequence([frame(0, 1)], rate=0.0), r"a rate of 0\.0 pictures a second"),
        ((1.0, 2.0), "the given numbers: a video is wanted here"),
        (frame(0, 1), "the given picture: a video is wanted here"),
    ]
    for source, message in cases:
        with pytest.raises(InputError, match=message):
            read_frames(source, 2)
    with pytest.raises(InputError, match="frames 0: give a number from 1 on"):
        read_frames(tmp_path / "text.mp4", 0)


def test_a_sound_without_pictures_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sound.mp4"
    with av.open(str(file), "w") as container:
        track = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux([*track.encode(sound), *track.encode(None)])
    with pytest.raises(InputError, match=r"sound\.mp4: holds no video track"):
        read_frames(file, 2)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    """FFmpeg would follow its entries, to any file of the machine and into the network."""
    save_video(tmp_path / "part.ts")
    for name in ("list.m3u8", "list.mp4"):
        (tmp_path / name).write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\npart.ts\n#EXT-X-ENDLIST\n")
        with pytest.raises(InputError, match=f"{name}: not a video"):
            read_frames(tmp_path / name, 2)


def test_without_pyav_the_message_says_what_to_install(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # to Python, a package that is not installed
    with pytest.raises(InputError, match=r'clip\.mp4: a video .* is read by PyAV, .*: pip install "mmprefix\[av\]"'):
        read_frames(clip, 2)
