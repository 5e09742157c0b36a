"""Input of the image encoders: a picture as a viewer shows it, through the model's own transform."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from mmprefix.encoders.image_input import ReadPicture
from mmprefix.errors import InputError
from tiny.media import scene


def to_pixels(picture: Image.Image) -> Tensor:
    """PIL image → (3 Y X) in 0..255."""
    return pil_to_tensor(picture)


def test_the_transform_sees_the_upright_picture_in_rgb(tmp_path: Path) -> None:
    picture, turned = scene(), Image.Exif()
    turned[0x0112] = 6  # a camera that was held upright
    file = tmp_path / "turned.png"
    picture.rotate(90, expand=True).convert("RGBA").save(file, exif=turned)
    read = ReadPicture(to_pixels)
    assert torch.equal(read(file), to_pixels(picture.convert("RGB")))
    for source in (file.read_bytes(), str(file)):
        assert torch.equal(read(source), read(file))
    assert torch.equal(read(file, 1.0, 2.0), read(file))  # a picture has no time
    copy = pickle.loads(pickle.dumps(read))  # a loader's worker gets it
    assert torch.equal(copy(file), read(file))


def test_a_fault_names_the_file(tmp_path: Path) -> None:
    stream = io.BytesIO()
    scene().save(stream, "png")
    (tmp_path / "cut.png").write_bytes(stream.getvalue()[:-40])
    for name in ("cut.png", "none.png"):
        with pytest.raises(InputError, match=name):
            ReadPicture(to_pixels)(tmp_path / name)
