"""Videos through an encoder of pictures: frames evenly spaced in time, each encoded alone, their features in a row.

Flamingo reads videos so (https://arxiv.org/abs/2204.14198, section 2.1), but adds learned positions in time. Here the
features stand in the order of time and nothing is added: a mapper that treats its frames as a set (``Resampler``) sees
what happens, not in which order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from mmprefix.encoders.audio_input import length_mask, masked_mean
from mmprefix.encoders.base import Encoder, Preprocess
from mmprefix.errors import InputError, require_one_of
from mmprefix.media.source import Source, name_of
from mmprefix.media.video import read_frames
from mmprefix.types import Features, Media

_AT_ONCE = 64  # pictures encoded together: a batch of long videos does not need more memory than one of short ones


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


class Frames(Encoder):
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
    wraps = "encoder"

    def __init__(self, encoder: Encoder, frames: int = 8, read: Literal["frames", "summary"] = "frames") -> None:
        super().__init__()
        require_one_of("read", read, ("frames", "summary"))
        if encoder.input_kind != "image":
            raise InputError(f"Frames.encoder: {type(encoder).__name__} reads {encoder.input_kind}, not pictures")
        if frames < 1:
            raise InputError(f"Frames.frames {frames}: give a number from 1 on")
        if read == "summary" and not encoder.pooled_dim:
            raise InputError(f"Frames.read 'summary': {type(encoder).__name__} gives no summary; give 'frames'")
        self.encoder, self.read = encoder, read
        self.dim = encoder.pooled_dim if read == "summary" else encoder.dim
        self.pooled_dim = encoder.pooled_dim
        self.identity = encoder.identity
        self.preprocess = ReadFrames(encoder.preprocess, frames)
        self.freeze()

    def train(self, mode: bool = True) -> Self:
        """The mode of the picture encoder is that of this one: it is tuned as a part of it."""
        super().train(mode)
        for module in self.encoder.modules():
            module.training = self.training
        return self

    def encode(self, media: Media) -> Features:
        """Pixels (B F 3 Y X) → frames (B F*T D), mask (B F*T), pooled (B G); padding frames are not encoded."""
        real = length_mask(media.lengths, media.values.shape[1])  # (B F)
        parts = [self._picture_features(pixels) for pixels in media.values[real].split(_AT_ONCE)]
        one = Features(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))  # of N real frames
        frames = one.frames.new_zeros(*real.shape, *one.frames.shape[1:])  # (B F T D)
        mask = one.mask.new_zeros(*real.shape, one.mask.shape[1])
        pooled = one.pooled.new_zeros(*real.shape, one.pooled.shape[1])
        frames[real], mask[real], pooled[real] = one.frames, one.mask, one.pooled
        return Features(frames.flatten(1, 2), mask.flatten(1), masked_mean(pooled, real))

    def _picture_features(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of N frames (N 3 Y X) → features (N T D), their mask (N T), and summaries (N G)."""
        ones = torch.ones(len(pixels), dtype=torch.long, device=pixels.device)
        features = self.encoder.encode(Media(pixels, ones))
        if self.read == "summary":
            return features.pooled[:, None], features.mask.new_ones(len(pixels), 1), features.pooled
        return features.frames, features.mask, features.pooled
