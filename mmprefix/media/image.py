"""Pictures: a file, bytes, a PIL image or an array → RGB pixels, upright.

Pillow reads files; HEIC and HEIF need pillow-heif (``mmprefix[heic]``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from mmprefix.errors import InputError
from mmprefix.media.source import Source, is_array, name_of, open_source, to_array
from mmprefix.trust.limits import limit, require_below, too_many

_PICTURE_ERRORS = (  # Pillow's readers of rare formats do not count what they read
    *(
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        EOFError,
        AttributeError,
    ),
    *(struct.error, Image.DecompressionBombError),
)
# Pillow hands these to other programs (EPS to Ghostscript), or knows their headers only.
_NOT_READ = frozenset({"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_TAG_BITS, _TAG_FORMAT, _UNSIGNED = 258, 339, 1  # TIFF: BitsPerSample, SampleFormat


def read_picture(source: Source) -> Image.Image:
    """The picture in ``source`` as RGB: upright (EXIF), alpha over white, palettes, CMYK and 16 bits brought to 8.

    An array is (Y X), (Y X 3) or (Y X 4), or channels first, with uint8, uint16, bool, or floats in 0..1. Integers of
    more than 16 bits in a file are brought to the least power of two that holds their largest.
    Raises InputError that names the file when it is missing, cut off or no picture.
    """
    with _picture(source) as picture:
        return _rgb(*_upright(picture), name_of(source))


def picture_size(source: Source) -> tuple[int, int]:
    """Width and height in pixels from the header; nothing is decoded. Errors as in ``read_picture``."""
    with _picture(source) as picture:
        return picture.size


def holds_picture(stream: BinaryIO) -> bool:
    """True if the content of ``stream`` is a picture of any format; nothing is decoded. Rewinds the stream."""
    stream.seek(0)
    head = stream.read(12)
    stream.seek(0)
    if head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS:
        return True
    try:
        with Image.open(stream, formats=_formats()):
            return True
    except Image.DecompressionBombError:  # of more pixels than the limit
        return True
    except _PICTURE_ERRORS:
        return False
    finally:
        stream.seek(0)


@cache
def _formats() -> list[str]:
    """Formats that are read, in the order in which Pillow tries them."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in Image.ID if name not in _NOT_READ]


@contextlib.contextmanager
def _picture(source: Source) -> Iterator[Image.Image]:
    name = name_of(source)
    try:
        if isinstance(source, Image.Image) or is_array(source):
            picture = source if isinstance(source, Image.Image) else _from_array(source, name)
            if 0 in picture.size:
                raise InputError(f"{name}: has no pixels ({picture.width} x {picture.height})")
            yield picture
        elif isinstance(source, str | Path | bytes):
            with open_source(source) as stream, _opened(stream, name) as picture:
                require_below("pixels", picture.width * picture.height, name)
                yield picture
        else:  # a waveform, a video, or numbers
            raise InputError(f"{name}: a picture is wanted here")
    except InputError:
        raise
    except _PICTURE_ERRORS as error:
        raise InputError(f"{name}: the picture cannot be decoded ({error})") from error


def _opened(stream: BinaryIO, name: str) -> Image.Image:
    most = limit("pixels")
    if Image.MAX_IMAGE_PIXELS is not None and most > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = int(most)  # Pillow refuses twice as many
    try:
        return Image.open(stream, formats=_formats())
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: {too_many('pixels', f'more than {most:,.0f}')}") from error
    except Image.UnidentifiedImageError as error:
        stream.seek(4)
        if stream.read(4) == b"ftyp" and stream.read(4) in _HEIF_BRANDS and "HEIF" not in _formats():
            raise InputError(
                f'{name}: a HEIC picture is read by pillow-heif, which is not installed: pip install "mmprefix[heic]"'
            ) from error
        formats = "jpeg, png, webp, gif, bmp, tiff, and what else Pillow reads"
        raise InputError(f"{name}: not a picture that can be read ({formats})") from error


def _from_array(source: Any, name: str) -> Image.Image:
    """Array (Y X), (Y X C) or (C Y X) as a picture of 8 bits; torch's (3 Y X) has its channels first where both fit."""
    values = to_array(source)
    if values.ndim not in (2, 3):
        raise InputError(f"{name}: an array of shape {values.shape}; give (Y X), (Y X 3) or (3 Y X)")
    if values.ndim == 3:
        axes = (0, 2) if hasattr(source, "detach") else (2, 0)
        axis = next((axis for axis in axes if values.shape[axis] in (1, 3, 4)), None)
        if axis is None:
            raise InputError(f"{name}: an array of shape {values.shape}; give (Y X), (Y X 3) or (3 Y X)")
        values = np.moveaxis(values, axis, 2)
        values = values[:, :, 0] if values.shape[2] == 1 else values
    return Image.fromarray(np.ascontiguousarray(_to_uint8(values, name)))


def _to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8 or not values.size:
        return values.astype(np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return np.rint(values / 257.0).astype(np.uint8)
    if values.dtype.kind != "f":
        raise InputError(f"{name}: an array of type {values.dtype}; give uint8, uint16, or floats in 0..1")
    low, high = float(values.min()), float(values.max())
    if not (low >= -0.01 and high <= 1.01):  # also where one is no number
        raise InputError(f"{name}: an array of floats from {low:.4g} to {high:.4g}; floats of a picture are in 0..1")
    return np.rint(np.clip(values, 0, 1) * 255.0).astype(np.uint8)


def _upright(picture: Image.Image) -> tuple[Image.Image, dict[int, Any]]:
    """The picture, turned as EXIF says, and its TIFF tags."""
    picture.load()  # pixels first: a fault in them must not be taken for one in the EXIF block
    tags = dict(getattr(picture, "tag_v2", {}))
    try:
        return ImageOps.exif_transpose(picture), tags
    except _PICTURE_ERRORS:  # many cameras and editors write EXIF blocks that nobody can parse; the pixels are intact
        return picture, tags


def _rgb(picture: Image.Image, tags: dict[int, Any], name: str) -> Image.Image:
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.dtype == np.int32 and tags.get(_TAG_FORMAT, (0,))[0] == _UNSIGNED:
            values = values.view(np.uint32)  # Pillow takes them for signed ones
        values = values.astype(np.float64) * (255.0 / _white(values, tags))
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise InputError(f"{name}: pixels are floating-point numbers without a known scale; save it with 8 or 16 bits")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _white(values: np.ndarray, tags: dict[int, Any]) -> int:
    """The value that is white: of 16 bits, of the fewer that a TIFF names, or of the more that the values need."""
    most = int(values.max())
    bits = int(np.ravel(tags.get(_TAG_BITS, 16))[0])
    return max((1 << min(bits, 16)) - 1, (1 << most.bit_length()) - 1 if most > 65535 else 0)
