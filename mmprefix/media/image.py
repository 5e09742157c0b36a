"""Pictures: a file, bytes or a PIL image → RGB pixels, upright."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmprefix.errors import InputError
from mmprefix.media.source import Source, name_of, open_source
from mmprefix.trust.limits import require_below

_PICTURE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError)


def read_picture(source: Source) -> Image.Image:
    """The picture in ``source`` as RGB: upright (EXIF), alpha over white, palettes, CMYK and 16 bits brought to 8.

    Raises InputError that names the file when it is missing, cut off or no picture.
    """
    with _picture(source) as picture:
        return _rgb(_upright(picture), name_of(source))


def picture_size(source: Source) -> tuple[int, int]:
    """Width and height in pixels from the header; nothing is decoded. Errors as in ``read_picture``."""
    with _picture(source) as picture:
        return picture.size


@contextlib.contextmanager
def _picture(source: Source) -> Iterator[Image.Image]:
    name = name_of(source)
    if not isinstance(source, str | Path | bytes | Image.Image):  # a waveform, a video, or numbers
        raise InputError(f"{name}: a picture is wanted here")
    try:
        if isinstance(source, Image.Image):
            yield source
        else:
            with open_source(source) as stream, Image.open(stream) as picture:
                require_below("pixels", picture.width * picture.height, name)
                yield picture
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture that can be read (jpeg, png, webp, gif, bmp, tiff)") from error
    except InputError:
        raise
    except _PICTURE_ERRORS as error:
        raise InputError(f"{name}: the picture cannot be decoded ({error})") from error


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()  # pixels first: a fault in them must not be taken for one in the EXIF block
    try:
        return ImageOps.exif_transpose(picture)
    except _PICTURE_ERRORS:  # many cameras and editors write EXIF blocks that nobody can parse; the pixels are intact
        return picture


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits (or 16 bits kept in 32): white is 65535
        values = np.asarray(picture).astype(np.float64) / 257.0
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise InputError(f"{name}: pixels are floating-point numbers without a known scale; save it with 8 or 16 bits")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
