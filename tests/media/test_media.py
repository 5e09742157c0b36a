"""Real files of every format, whole and broken, through the only input of sound and pictures."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageCms

from mmprefix.errors import InputError
from mmprefix.media.audio import read_samples, read_waveform, sound_seconds
from mmprefix.media.files import missing, open_source
from mmprefix.media.image import picture_size, read_picture
from mmprefix.media.source import Waveform

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RATE = 22050


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


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
def test_a_part_is_the_slice_of_the_whole(tmp_path: Path, kind: str) -> None:
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


def test_a_wav_from_a_pipe_announces_no_length_and_is_whole(tmp_path: Path) -> None:
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


def test_sounds_without_samples_in_the_part(tmp_path: Path) -> None:
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


def test_samples_that_are_no_numbers(tmp_path: Path) -> None:
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
    for values, reason in ((np.zeros((RATE, 2)), "channels first"), (np.zeros(9, bool), "bool")):
        with pytest.raises(InputError, match=reason):
            read_waveform(Waveform(values, RATE), RATE)
    with pytest.raises(InputError, match="rate of 0 Hz"):
        read_waveform(Waveform(tone(), 0), RATE)


# ------------------------------------------------------------------------------------------------------- pictures


def scene() -> Image.Image:
    """Left half red, right half blue, 40 wide and 20 high."""
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (20, 0, 40, 20))
    return picture


def near(picture: Image.Image, place: tuple[int, int], colour: tuple[int, int, int], worst: int = 12) -> bool:
    pixel = picture.getpixel(place)
    assert isinstance(pixel, tuple)
    return picture.mode == "RGB" and max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= worst


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_every_picture_format(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"scene.{kind}"
    scene().save(file, kind)
    for source in (file, str(file), file.read_bytes(), Image.open(file)):
        picture = read_picture(source)
        assert picture.size == (40, 20)
        assert near(picture, (5, 10), (254, 0, 0))
        assert near(picture, (35, 10), (0, 0, 254))
    assert picture_size(file) == (40, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "L", "1", "I;16"])
def test_every_pixel_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    clear_red = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    pictures = {
        "RGBA": (clear_red, (255, 255, 255)),
        "LA": (Image.new("LA", (8, 8), (0, 127)), (128, 128, 128)),
        "P": (clear_red.quantize(), (255, 255, 255)),
        "CMYK": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
        "L": (Image.new("L", (8, 8), 77), (77, 77, 77)),
        "1": (Image.new("1", (8, 8), 1), (255, 255, 255)),
        "I;16": (Image.fromarray(np.full((8, 8), 65535 // 2, np.uint16)), (127, 127, 127)),
    }
    picture, colour = pictures[mode]
    picture.save(file)
    assert near(read_picture(file), (4, 4), colour, worst=2)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    turns = {1: 0, 3: 180, 6: 90, 8: 270}  # how far the stored picture is turned, counter-clockwise
    exif = Image.Exif()
    exif[0x0112] = orientation
    scene().rotate(turns[orientation], expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    picture = read_picture(tmp_path / "turned.jpg")
    assert picture.size == (40, 20)
    assert near(picture, (5, 10), (254, 0, 0))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    scene().save(tmp_path / "odd.jpg", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert near(read_picture(tmp_path / "odd.jpg"), (5, 10), (254, 0, 0))


def test_a_colour_profile_does_not_stop_the_picture(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scene().save(tmp_path / "profile.jpg", icc_profile=profile)
    assert near(read_picture(tmp_path / "profile.jpg"), (35, 10), (0, 0, 254))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_picture_that_is_cut_off_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"cut.{kind}"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    data = file.read_bytes()
    for size in (len(data) - 60, len(data) // 2, 20, 0):
        file.write_bytes(data[:size])
        with pytest.raises(InputError, match=rf"cut\.{kind}"):
            read_picture(file)


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("This is no picture at all.\n" * 50)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    cases = [
        ("text.jpg", "not a picture"),
        ("float.tiff", "floating-point"),
        ("absent.png", "no such file"),
        (".", "directory"),
    ]
    for name, reason in cases:
        with pytest.raises(InputError, match=rf"{name}.*{reason}"):
            read_picture(tmp_path / name)
    with pytest.raises(InputError, match="a picture is wanted"):
        read_picture(Waveform(tone(), RATE))
    with pytest.raises(InputError, match="a sound is wanted"):
        read_waveform(scene(), RATE)


# --------------------------------------------------------------------------------------------------- zip archives


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


def test_an_archive_written_anew_is_opened_anew(archive: Path) -> None:
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
    assert [queue.get(timeout=30) for _ in children] == [expected] * 3
    for child in children:
        child.join()


def test_a_file_with_colons_in_its_name_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "odd::name.png"
    scene().save(file)
    assert read_picture(file).size == (40, 20)
    assert missing(file) is None


def test_sources_can_be_sent_to_workers(tmp_path: Path) -> None:
    wave = pickle.loads(pickle.dumps(Waveform(tone(), RATE)))
    assert read_waveform(wave, RATE).shape == (RATE,)


def test_m4a_needs_the_extra_and_says_so(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV (mmprefix[audio]) is not installed")
    file = tmp_path / "tone.m4a"
    with av.open(str(file), "w") as container:
        track = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone()[None], format="fltp", layout="mono")
        frame.rate = RATE
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    assert len(read_waveform(file, RATE)) == pytest.approx(RATE, rel=0.15)


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
