"""Pictures of every format and pixel mode, whole and broken."""

from __future__ import annotations

import importlib.util
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageCms

from mmprefix.errors import InputError
from mmprefix.media.audio import read_waveform
from mmprefix.media.image import picture_size, read_picture
from mmprefix.media.kinds import kind_of
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


OTHER_FORMATS = {
    "ppm": "PPM",
    "pgm": "PPM",
    "jp2": "JPEG2000",
    "tga": "TGA",
    "dib": "DIB",
    "pcx": "PCX",
    "avif": "AVIF",
    "ico": "ICO",
    "icns": "ICNS",
    "sgi": "SGI",
    "im": "IM",
    "dds": "DDS",
    "qoi": "QOI",
    "webp": "WEBP",
}


@pytest.mark.parametrize("suffix", OTHER_FORMATS)
def test_what_pillow_opens_is_a_picture_by_its_content(tmp_path: Path, suffix: str) -> None:
    """For a model that reads pictures and sounds: a file without suffix, with it, and bytes."""
    picture = scene().resize((64, 64)).convert("L" if suffix == "pgm" else "RGB")
    file, unnamed = tmp_path / f"scene.{suffix}", tmp_path / "unnamed"
    picture.save(file, OTHER_FORMATS[suffix])
    unnamed.write_bytes(file.read_bytes())
    with Image.open(file) as opened:
        expected = np.asarray(opened.convert("RGB"), int)
    for source in (file, str(file), unnamed, file.read_bytes()):
        assert kind_of(source) == "image", source
        assert np.abs(np.asarray(read_picture(source), int) - expected).max() == 0
        assert picture_size(source) == expected.shape[1::-1]


def test_no_sound_is_a_picture_by_its_content(tmp_path: Path) -> None:
    for container in soundfile.available_formats():
        if container not in ("RAW", "SD2") and soundfile.check_format(container, soundfile.default_subtype(container)):
            soundfile.write(tmp_path / "unnamed", tone(), RATE, format=container)
            assert kind_of(tmp_path / "unnamed") != "image", container
            assert kind_of((tmp_path / "unnamed").read_bytes()) != "image", container


def test_formats_that_other_programs_would_run_are_not_read(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript, where that is installed."""
    scene().save(tmp_path / "drawing.eps")
    assert kind_of(tmp_path / "drawing.eps") is None
    with pytest.raises(InputError, match=r"drawing\.eps: not a picture that can be read"):
        read_picture(tmp_path / "drawing.eps")


def test_heic_is_read_by_an_extra(tmp_path: Path) -> None:
    """Read where pillow-heif is installed; one line that names the extra where it is not."""
    header = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (tmp_path / "unnamed").write_bytes(header)
    assert kind_of(tmp_path / "unnamed") == kind_of(header) == "image"
    if importlib.util.find_spec("pillow_heif") is None:
        with pytest.raises(InputError, match=r'unnamed: a HEIC picture is .* pip install "mmprefix\[heic\]"'):
            read_picture(tmp_path / "unnamed")
        return
    with pytest.raises(InputError, match=r"unnamed: (not a picture|the picture cannot be decoded)"):
        read_picture(tmp_path / "unnamed")
    scene().save(tmp_path / "scene.heic", quality=100)
    assert near(read_picture((tmp_path / "scene.heic").read_bytes()), (5, 10), (254, 0, 0))


def gradient(most: int, dtype: type) -> np.ndarray:
    """Values (4 64) from 0 to ``most``."""
    return np.linspace(0, most, 64).astype(dtype)[None].repeat(4, 0)


@pytest.mark.parametrize("container", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_pictures_of_16_bits_keep_their_contrast(container: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(gradient(65535, np.uint16)).save(stream, container)
    expected = np.rint(gradient(65535, np.uint16) / 257)
    assert np.abs(np.asarray(read_picture(stream.getvalue()), int)[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("most", [65536, 200_000, 2**24 - 1, 2**31 - 1])
def test_pictures_of_32_bits_keep_their_contrast(most: int) -> None:
    """The largest value is between half white and white, and the others are in proportion."""
    stream = io.BytesIO()
    Image.fromarray(gradient(most, np.int32)).save(stream, "TIFF")
    for source in (stream.getvalue(), Image.fromarray(gradient(most, np.int32))):
        line = np.asarray(read_picture(source), float)[0, :, 0]
        assert 127 <= line[-1] <= 255
        assert np.abs(line - line[-1] * np.linspace(0, 1, 64)).max() <= 1


def test_unsigned_tiffs_of_32_bits_are_not_negative() -> None:
    stream = io.BytesIO()
    Image.fromarray(gradient(2**32 - 1, np.uint32).view(np.int32)).save(stream, "TIFF")
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, value, 0) for value in (2, 1))
    assert signed in stream.getvalue()
    line = np.asarray(read_picture(stream.getvalue().replace(signed, unsigned)), float)[0, :, 0]
    assert np.abs(line - np.linspace(0, 255, 64)).max() <= 1


def test_arrays_are_pictures() -> None:
    values = np.asarray(scene())
    grey = np.asarray(scene().convert("L"))
    tensor = torch.from_numpy(values.copy())
    same: list[Any] = [
        *(values, values / 255, (values / 255).astype(np.float32), values.astype(np.uint16) * 257),
        *(np.moveaxis(values, 2, 0), tensor, tensor.permute(2, 0, 1), tensor.permute(2, 0, 1) / 255),
        *((tensor / 255).bfloat16().permute(2, 0, 1), np.dstack([values, np.full(values.shape[:2], 255, np.uint8)])),
    ]
    for number, source in enumerate(same):
        assert kind_of(source) == "image"
        assert np.abs(np.asarray(read_picture(source), int) - values).max() <= 1, number
        assert picture_size(source) == (40, 20)
    for source in (grey, grey[:, :, None], grey / 255, torch.from_numpy(grey.copy())[None]):
        assert np.abs(np.asarray(read_picture(source), int) - grey[:, :, None]).max() <= 1
    assert np.asarray(read_picture(grey > 100))[10, 5].tolist() == [255 * (int(grey[10, 5]) > 100)] * 3
    square = torch.zeros(3, 3, 3)
    square[0] = 1.0  # the first axis is the colour: red everywhere
    assert np.asarray(read_picture(square))[2, 1].tolist() == [255, 0, 0]


def test_arrays_that_are_no_pictures_are_refused_in_one_line() -> None:
    cases: list[tuple[Any, str]] = [
        (np.zeros((0, 4, 3), np.uint8), r"has no pixels \(4 x 0\)"),
        (Image.new("RGB", (0, 0)), r"has no pixels \(0 x 0\)"),
        (np.zeros((5, 5, 5), np.uint8), r"shape \(5, 5, 5\); give \(Y X\)"),
        (np.zeros((4, 4), np.int64), "type int64; give uint8"),
        (np.full((4, 4, 3), 200.0), "floats from 200 to 200; floats of a picture are in 0..1"),
        (torch.randn(3, 4, 4), "floats of a picture are in 0..1"),
        (np.full((4, 4, 3), np.nan), "floats of a picture are in 0..1"),
    ]
    for source, reason in cases:
        with pytest.raises(InputError, match=f"the given picture: .*{reason}") as error:
            read_picture(source)
        assert "\n" not in str(error.value)
