"""Videos through an encoder of pictures: frames evenly spaced in time, each encoded alone, their features in a row.

Flamingo reads videos so (https://arxiv.org/abs/2204.14198, section 2.1), but adds learned positions in time. Here the
features stand in the order of time and nothing is added: a mapper that treats its frames as a set (``Resampler``) sees
what happens, not in which order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmprefix.encoders.base import Encoder, Preprocess
from mmprefix.encoders.picture_set import PictureSet
from mmprefix.errors import InputError
from mmprefix.media.source import Source, name_of
from mmprefix.media.video import read_frames


@dataclass(frozen=True)
class ReadFrames:
    """Preprocessing of ``Frames``: at most ``frames`` frames, each through ``picture``, the picture encoder's own."""

    picture: Preprocess
    frames: int

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """``source`` between ``start`` and ``end`` seconds → pixels (F 3 Y X), float32, F at most ``frames``."""
        pixels = [self.picture(image, 0.0, None) for image in read_frames(source, self.frames, start, end)]
        sizes = {tuple(one.shape[-2:]) for one in pixels}
        if len(sizes) > 1:
            raise InputError(
                f"{name_of(source)}: its pictures have several sizes ({', '.join(map(str, sorted(sizes)))})"
            )
        return torch.stack(pixels)


class Frames(PictureSet):
    """``frames`` frames of a video, each encoded by an encoder of pictures; a shorter video has fewer.

    The part that is read is cut into ``frames`` slots of equal length, and the frame shown at the middle of each is
    taken (``mmprefix.media.video``). The summary is the mean of the frames' summaries.

    Args:
        encoder: an encoder of pictures (``Clip``, ``ViT``).
        frames: most frames of a video.
        read: "frames" keeps the T features of each frame, one frame after the other (T = ``frames`` * T of a picture);
            "summary" keeps the summary of each frame as its only feature (T = ``frames``, D = the encoder's G).
    """

    input_kind = "video"

    def __init__(self, encoder: Encoder, frames: int = 8, read: Literal["frames", "summary"] = "frames") -> None:
        if frames < 1:
            raise InputError(f"Frames.frames {frames}: give a number from 1 on")
        super().__init__(encoder, read, ReadFrames(encoder.preprocess, frames))
