"""Embodied-former: learned queries read a video's features and, beside it, an instruction; they become the prefix.

EmbodiedGPT: Vision-Language Pre-Training via Embodied Chain of Thought (Mu et al. 2023),
https://arxiv.org/abs/2305.15021. Its layers are the released code's, BLIP-2's Q-Former; a linear projection follows.
Chosen here: the instruction comes from a frozen encoder of texts through a linear layer; time, which in the paper is in
the video encoder (a convolution over two frames, learned positions), comes in both forms behind one of single frames.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes, need_frames
from mmprefix.mappers.qformer_layers import FormerLayer, sharpen, smooth_positions, with_earlier
from mmprefix.types import Features, Prefix, all_real


class EmbodiedFormer(Mapper):
    """``length`` learned queries read frames (B T D) and the context's frames, an instruction (B N D'') → (B P E).

    Without a ``context`` it reads the video alone. Defaults are the released sizes. InputError for what does not fit.

    Args:
        length: number of queries, the positions of the prefix.
        layers: number of layers.
        heads: attention heads; they divide ``hidden``.
        hidden: width of the queries.
        inner: width inside the feed-forward networks; None: four times ``hidden``.
        cross_every: the first of so many layers attends to the frames.
        frames: most frames of a video, each of which has a learned position in time; 0: no positions.
        cells: features of one frame, each of which has a learned position; T is a multiple of it.
        span: a feature is read together with those of the same cell in the ``span`` - 1 frames before.
        dropout: probability of zeroing an attention weight, and a number of each layer's parts, in training.
        spread: standard deviation of the learned positions before training; 0.02 vanishes beside most features.
        patch: side of the squares of cells whose positions are much alike before training, of a square of cells.
        sharpness: factor on the logits of the attention to frames before training; at 1 it begins as a mean of all.
    """

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        sizes: Sizes,
        *,
        length: int = 32,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 768,
        inner: int | None = None,
        cross_every: int = 2,
        frames: int = 0,
        cells: int = 1,
        span: int = 1,
        dropout: float = 0.1,
        spread: float = 0.02,
        patch: int = 1,
        sharpness: float = 1.0,
    ) -> None:
        super().__init__(sizes)
        need_frames(self)
        if hidden % heads:
            raise InputError(f"EmbodiedFormer: heads={heads} does not divide the width {hidden}")
        counts = {"length": length, "layers": layers, "cross_every": cross_every, "cells": cells, "span": span}
        for option, value in counts.items():
            if value < 1:
                raise InputError(f"EmbodiedFormer.{option} {value}: give a number from 1 on")
        self.cells, self.span, self.dropout = cells, span, dropout
        self.queries = nn.Parameter(torch.randn(length, hidden) * 0.02)
        self.norm, self.norm_frames = nn.LayerNorm(hidden, eps=1e-12), nn.LayerNorm(sizes.frames)
        self.over_time = nn.Linear(span * sizes.frames, sizes.frames) if span > 1 else None
        self.times = nn.Parameter(torch.randn(frames, 1, sizes.frames) * spread) if frames else None
        self.places = smooth_positions(cells, sizes.frames, spread, patch) if frames and cells > 1 else None
        self.from_text = nn.Linear(sizes.context_frames, hidden) if sizes.context_frames else None
        build = partial(FormerLayer, hidden, sizes.frames, heads, inner=inner or 4 * hidden, dropout=dropout)
        former = [  # the last layer's text is not read any more
            build(cross=number % cross_every == 0, text=self.reads_context and number < layers - 1)
            for number in range(layers)
        ]
        self.layers, self.out = sharpen(former, sharpness), nn.Linear(hidden, sizes.width)

    @property
    def reads_context(self) -> bool:
        """True if it was built between a video and an instruction."""
        return self.from_text is not None

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Frames (B T D) of videos, and those of instructions → embeddings (B P E), all real."""
        frames, seen = self._frames(features)
        x = self.queries.expand(len(seen), -1, -1)
        mask, length = all_real(x), len(self.queries)
        if self.from_text is not None and context is not None:
            x, mask = torch.cat([x, self.from_text(context.frames)], dim=1), torch.cat([mask, context.mask], dim=1)
        x = F.dropout(self.norm(x), self.dropout, self.training)
        for layer in self.layers:
            x = layer(x, mask, frames, seen, length=length)
        return Prefix(self.out(x[:, :length]), mask[:, :length])

    def _frames(self, features: Features) -> tuple[Tensor, Tensor]:
        """Features with their time, (B T D), and their mask (B T); a video without frames has one zero."""
        frames, seen = features.frames.masked_fill(~features.mask[..., None], 0), features.mask
        if not frames.shape[1]:
            return frames.new_zeros(len(frames), 1, frames.shape[2]), seen.new_ones(len(frames), 1)
        if frames.shape[1] % self.cells:
            raise InputError(f"EmbodiedFormer.cells {self.cells}: a video has {frames.shape[1]} features, no multiple")
        frames = frames.view(len(frames), -1, self.cells, frames.shape[2])  # (B F C D)
        if self.over_time is not None:
            frames = frames + self.over_time(with_earlier(frames, self.span))
        if self.times is not None:
            if frames.shape[1] > len(self.times):
                raise InputError(f"EmbodiedFormer.frames {len(self.times)}: a video has {frames.shape[1]} frames")
            frames = frames + self.times[: frames.shape[1]]
        frames = frames if self.places is None else frames + self.places
        return self.norm_frames(frames).flatten(1, 2), seen | ~seen.any(1, keepdim=True)
