"""Pictures of every format and pixel mode, whole and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mmprefix.errors import InputError
from mmprefix.media.audio import read_waveform
from mmprefix.media.image import picture_size, read_picture
from mmprefix.media.source import Waveform
from tiny.media import RATE, near, scene, tone


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
def test_a_picture_with_a_broken_exif_block_is_read(tmp_path: Path) -> None:
    scene().save(tmp_path / "odd.jpg", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert near(read_picture(tmp_path / "odd.jpg"), (5, 10), (254, 0, 0))


def test_a_picture_with_a_colour_profile_is_read(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scene().save(tmp_path / "profile.jpg", icc_profile=profile)
    assert near(read_picture(tmp_path / "profile.jpg"), (35, 10), (0, 0, 254))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_truncated_picture_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"cut.{kind}"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    data = file.read_bytes()
    for size in (len(data) - 60, len(data) // 2, 20, 0):
        file.write_bytes(data[:size])
        with pytest.raises(InputError, match=rf"cut\.{kind}"):
            read_picture(file)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
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
