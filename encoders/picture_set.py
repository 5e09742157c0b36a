"""Several pictures of one input, each encoded alone by an encoder of pictures, their features in a row."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor

from mmprefix.encoders.audio_input import length_mask, masked_mean
from mmprefix.encoders.base import Encoder, Preprocess
from mmprefix.errors import InputError, require_one_of
from mmprefix.types import Features, Media

# pictures encoded together: a batch of long videos needs no more memory than one of short ones; on a CPU the layers
# of a few pictures fit into its cache, and 64 at once take twice as long
_AT_ONCE, _AT_ONCE_ON_CPU = 64, 4


class PictureSet(Encoder):
    """Base of encoders that read several pictures of an input through ``encoder``, an encoder of one picture.

    The summary is the mean of the pictures' summaries. ``read`` "frames" keeps the T features of each picture, one
    picture after the other; "summary" keeps the summary of each picture as its only feature.
    """

    wraps = "encoder"

    def __init__(self, encoder: Encoder, read: Literal["frames", "summary"], preprocess: Preprocess) -> None:
        super().__init__()
        name = type(self).__name__
        require_one_of("read", read, ("frames", "summary"))
        if encoder.input_kind != "image":
            raise InputError(f"{name}.encoder: {type(encoder).__name__} reads {encoder.input_kind}, not pictures")
        if read == "summary" and not encoder.pooled_dim:
            raise InputError(f"{name}.read 'summary': {type(encoder).__name__} gives no summary; give 'frames'")
        self.encoder, self.read = encoder, read
        self.dim = encoder.pooled_dim if read == "summary" else encoder.dim
        self.pooled_dim = encoder.pooled_dim
        self.identity = encoder.identity
        self.preprocess = preprocess
        self.freeze()

    def train(self, mode: bool = True) -> Self:
        """The mode of the picture encoder is that of this one: it is tuned as a part of it."""
        super().train(mode)
        for module in self.encoder.modules():
            module.training = self.training
        return self

    def encode(self, media: Media) -> Features:
        """Pixels (B F 3 Y X) → frames (B F*T D), mask (B F*T), pooled (B G); padding pictures are not encoded."""
        real = length_mask(media.lengths, media.values.shape[1])  # (B F)
        count = _AT_ONCE_ON_CPU if media.values.device.type == "cpu" else _AT_ONCE
        parts = [self._picture_features(pixels) for pixels in media.values[real].split(count)]
        # features of the N pictures that are no padding
        encoded = Features(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        frames = encoded.frames.new_zeros(*real.shape, *encoded.frames.shape[1:])  # (B F T D)
        mask = encoded.mask.new_zeros(*real.shape, encoded.mask.shape[1])
        pooled = encoded.pooled.new_zeros(*real.shape, encoded.pooled.shape[1])
        frames[real], mask[real], pooled[real] = encoded.frames, encoded.mask, encoded.pooled
        return Features(frames.flatten(1, 2), mask.flatten(1), masked_mean(pooled, real))

    def _picture_features(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of N pictures (N 3 Y X) → features (N T D), their mask (N T), and summaries (N G)."""
        ones = torch.ones(len(pixels), dtype=torch.long, device=pixels.device)
        features = self.encoder.encode(Media(pixels, ones))
        if self.read == "summary":
            return features.pooled[:, None], features.mask.new_ones(len(pixels), 1), features.pooled
        return features.frames, features.mask, features.pooled
