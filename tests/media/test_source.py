"""Members of archives as input files, and real files of the shared data sets."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import zipfile
from functools import partial
from pathlib import Path

import pytest
import soundfile
from PIL import Image

from mmprefix.errors import InputError
from mmprefix.media.audio import read_waveform, sound_seconds
from mmprefix.media.image import picture_size, read_picture
from mmprefix.media.source import missing, open_source
from tiny.media import RATE, near, scene, tone

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "tone.ogg", tone(), RATE)
    scene().save(tmp_path / "scene.png")
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as handle:
        handle.write(tmp_path / "tone.ogg", "in/tone.ogg")
        handle.write(tmp_path / "scene.png", "scene.png")
    return tmp_path / "both.zip"


def _read_in_child(archive: str, queue: multiprocessing.Queue[int]) -> None:
    queue.put(sum(sum(open_source(f"{archive}::scene.png").read()) for _ in range(50)))


def test_members_of_an_archive(archive: Path) -> None:
    assert len(read_waveform(f"{archive}::in/tone.ogg", RATE)) == RATE
    assert near(read_picture(f"{archive}::scene.png"), (5, 10), (254, 0, 0))
    assert missing(f"{archive}::scene.png") is None
    for source in (f"{archive}::absent.png", archive.parent / "no.zip::scene.png"):
        assert missing(source)
        with pytest.raises(InputError, match=r"both\.zip.*'absent\.png'|no\.zip: no such file"):
            read_picture(source)
    (archive.parent / "text.zip").write_text("no archive")
    with pytest.raises(InputError, match=r"text\.zip: not a zip archive"):
        read_picture(archive.parent / "text.zip::scene.png")


def test_a_damaged_member_is_refused_by_name(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(InputError, match=r"both\.zip::scene\.png"):
        read_picture(f"{archive}::scene.png")


def test_a_rewritten_archive_is_opened_again(archive: Path) -> None:
    before = read_picture(f"{archive}::scene.png").size
    with zipfile.ZipFile(archive, "w") as handle:
        stream = io.BytesIO()
        Image.new("RGB", (7, 9)).save(stream, "png")
        handle.writestr("scene.png", stream.getvalue())
    os.utime(archive, ns=(1, 1))
    assert (before, read_picture(f"{archive}::scene.png").size) == ((40, 20), (7, 9))


def test_forked_processes_read_the_same_archive(archive: Path) -> None:
    expected = 50 * sum(open_source(f"{archive}::scene.png").read())  # the parent has it open before it forks
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_read_in_child, args=(str(archive), queue)) for _ in range(3)]
    for child in children:
        child.start()
    assert [queue.get(timeout=300) for _ in children] == [expected] * 3
    for child in children:
        child.join()


def test_a_file_with_colons_in_its_name_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "odd::name.png"
    scene().save(file)
    assert read_picture(file).size == (40, 20)
    assert missing(file) is None


@pytest.mark.parametrize("name", ["esc10/audio", "fsdd/audio", "coco_mini/images"])
def test_real_files(name: str) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    for file in sorted(folder.iterdir())[:5]:
        if file.suffix == ".jpg":
            assert read_picture(file).size == picture_size(file)
        else:
            assert len(read_waveform(file, 16000)) == pytest.approx(16000 * sound_seconds(file), abs=1)


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    """Opening a pipe waits for a writer, and a device may have no end."""
    os.mkfifo(tmp_path / "pipe.wav")
    for source in (tmp_path / "pipe.wav", "/dev/zero"):
        with pytest.raises(InputError, match=f"{source}: is no regular file"):
            open_source(source)


def test_a_file_without_a_byte_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.dat").touch()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.dat", b"")
    sources = {"a.dat": tmp_path / "a.dat", "a.zip::a.dat": f"{tmp_path / 'a.zip'}::a.dat", "the given bytes": b""}
    for name, source in sources.items():
        for read in (read_picture, picture_size, partial(read_waveform, rate=16000), sound_seconds):
            with pytest.raises(InputError, match=f"{name}: is empty, without a single byte"):
                read(source)
        assert open_source(source, empty=True).read() == b""


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "\ud83d"])
def test_names_that_no_disk_can_hold(name: str, tmp_path: Path) -> None:
    path = f"{tmp_path}/{name}.wav"
    assert missing(path) == f"{path}: no such file"
    assert str(missing(f"{path}.zip::a.wav")).startswith(f"{path}.zip: ")
    for source in (path, f"{path}.zip::a.wav"):
        with pytest.raises(InputError):
            open_source(source)


METHODS = {"stored": zipfile.ZIP_STORED, "deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2}
METHODS["lzma"] = zipfile.ZIP_LZMA


@pytest.mark.parametrize("method", METHODS)
def test_an_archive_with_damaged_bytes_is_read_or_refused(method: str, tmp_path: Path) -> None:
    draw = random.Random(method)
    content = draw.randbytes(600) + b"sound" * 200
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", METHODS[method]) as handle:
        handle.writestr("a.wav", content)
        handle.writestr("b.wav", content[::-1])
    whole, refusals = stream.getvalue(), []
    for number in range(150):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 3, 30))):
            data[draw.randrange(len(data))] = draw.choice((0, 255, draw.randrange(256)))
        file = tmp_path / f"{number}.zip"
        file.write_bytes(data)
        try:
            assert open_source(f"{file}::a.wav").read() == content
        except InputError as error:
            refusals.append((str(file), str(error)))
    assert len(refusals) > 30
    assert all(message.startswith(file) for file, message in refusals)
