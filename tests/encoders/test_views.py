"""Views of a picture: the whole one and its squares, each encoded as a picture of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from mmprefix.data.collate import pad_media
from mmprefix.encoders.signals import Signals
from mmprefix.encoders.views import Views
from mmprefix.encoders.vit import ViT
from mmprefix.errors import InputError
from mmprefix.parts import from_recipe, to_recipe
from tiny import encoders as tiny


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> ViT:
    return ViT(str(tiny.save_vision(tmp_path_factory.mktemp("views") / "vit", "vit")))


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("read", ["frames", "summary"])
@pytest.mark.parametrize(
    ("size", "squares", "boxes"),
    [
        ((90, 40), 3, [(0, 0, 40, 40), (25, 0, 65, 40), (50, 0, 90, 40)]),
        ((40, 90), 2, [(0, 0, 40, 40), (0, 50, 40, 90)]),
        ((41, 90), 1, [(0, 24, 41, 65)]),
        ((40, 40), 2, [(0, 0, 40, 40)] * 2),
    ],
)
def test_features_are_those_of_the_crops(vit: ViT, size: Any, squares: int, boxes: Any, read: Any) -> None:
    encoder, image = Views(vit, squares=squares, read=read), picture(*size)
    views = [image, *(image.crop(box) for box in boxes)]
    alone = vit(pad_media([vit.preprocess(view, 0.0, None) for view in views]))
    features = encoder(pad_media([encoder.preprocess(image, 0.0, None)]))
    assert encoder.input_kind == "image"
    assert_close(features.frames[0], alone.pooled if read == "summary" else alone.frames.flatten(0, 1))
    assert_close(features.pooled[0], alone.pooled.mean(0))
    assert features.mask.all()


def test_a_batch_equals_its_pictures_one_at_a_time(vit: ViT) -> None:
    encoder = Views(vit)
    values = [encoder.preprocess(picture(*size), 0.0, None) for size in ((90, 40), (30, 50))]
    batch = encoder(pad_media(values))
    for row, value in enumerate(values):
        assert_close(batch.pooled[row], encoder(pad_media([value])).pooled[0], atol=1e-5, rtol=1e-5)


def test_a_recipe_builds_it_and_wrong_options_are_refused(vit: ViT) -> None:
    encoder = Views(vit, squares=2, read="summary")
    again = from_recipe(to_recipe(encoder), Views)
    value = encoder.preprocess(picture(50, 30), 0.0, None)
    assert torch.equal(again.preprocess(picture(50, 30), 0.0, None), value)
    with pytest.raises(InputError, match=r"Views\.squares 0: give a number from 1 on"):
        Views(vit, squares=0)
    with pytest.raises(InputError, match=r"Views\.encoder: Signals reads signals, not pictures"):
        Views(Signals())
