"""A picture looked at several times, whole and from nearer, by an encoder of pictures.

Crops beside the whole picture make features of a small network steadier: ImageNet Classification with Deep
Convolutional Neural Networks (Krizhevsky, Sutskever, Hinton), section 4.1, averages ten of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmprefix.encoders.base import Encoder, Preprocess
from mmprefix.encoders.picture_set import PictureSet
from mmprefix.errors import InputError
from mmprefix.media.image import read_picture
from mmprefix.media.source import Source


@dataclass(frozen=True)
class ReadViews:
    """Preprocessing of ``Views``: the whole picture and ``squares`` squares of it, each through ``picture``."""

    picture: Preprocess
    squares: int

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """``source`` → pixels (1 + squares, 3 Y X), float32. ``start`` and ``end`` are ignored."""
        image = read_picture(source)
        width, height = image.size
        side, views = min(width, height), [image]
        for number in range(self.squares):
            share = 0.5 if self.squares == 1 else number / (self.squares - 1)
            left, top = round((width - side) * share), round((height - side) * share)
            views.append(image.crop((left, top, left + side, top + side)))
        return torch.stack([self.picture(view, 0.0, None) for view in views])


class Views(PictureSet):
    """The whole picture, and ``squares`` squares evenly spaced along its longer side, each encoded alone.

    The summary is the mean of all. Worth its time (1 + ``squares`` pictures instead of one) for an encoder that brings
    a picture to a small size; docs/tuning.md has figures.

    Args:
        encoder: an encoder of pictures (``Timm``, ``Clip``, ``ViT``).
        squares: how many, as long as the shorter side; one lies in the middle.
        read: "frames" keeps the T features of each view, one view after the other; "summary" keeps the summary of each
            view as its only feature.
    """

    input_kind = "image"

    def __init__(self, encoder: Encoder, squares: int = 3, read: Literal["frames", "summary"] = "frames") -> None:
        if squares < 1:
            raise InputError(f"Views.squares {squares}: give a number from 1 on")
        super().__init__(encoder, read, ReadViews(encoder.preprocess, squares))
