"""Any mapper between standardised features and word vectors: it learns at once on pretrained decoders as they come.

Two things keep a fresh mapper from learning. Features of a pretrained encoder have a large common part and numbers of
very different spread, and an optimizer's first steps are of one size whatever the size of a word vector is. Here
features are standardised, the prefix is measured in word vectors, and what all inputs share (that a caption comes now)
is left to learned positions before it, which move fast, as prompt tuning asks for: The Power of Scale for
Parameter-Efficient Prompt Tuning (Lester, Al-Rfou, Constant), https://arxiv.org/abs/2104.08691.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Mapper, Sizes
from mmprefix.mappers.observer import Observer
from mmprefix.types import Features, Prefix

_LEAST = 0.01  # least standard deviation of a number, as a share of their mean one


class Moments(nn.Module):
    """Mean and variance of each of ``width`` numbers, over all rows shown so far."""

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.zeros(width))

    def update(self, rows: Tensor) -> None:
        """Take in ``rows`` (N D): Chan, Golub, LeVeque, https://doi.org/10.1007/978-3-642-51461-6_3."""
        if not len(rows):
            return
        rows = rows.double()
        before, total = int(self.count), int(self.count) + len(rows)
        apart = rows.mean(0) - self.mean
        spread = self.variance * before + rows.var(0, correction=0) * len(rows) + apart**2 * before * len(rows) / total
        self.variance.copy_(spread / total)
        self.mean.copy_(self.mean + apart * len(rows) / total)
        self.count.fill_(total)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (... D) with mean 0 and standard deviation 1; a number that hardly changes is not blown up."""
        deviation = self.variance.sqrt()
        least = (_LEAST * deviation.mean()).clamp(min=torch.finfo(deviation.dtype).tiny)
        return (rows - self.mean.to(rows.dtype)) / deviation.maximum(least).to(rows.dtype)


class Calibrated(Observer):
    """Prefix of ``mapper`` over standardised features, in the scale of word vectors, behind learned positions.

    Features (frames B T D, summary B G) are standardised number by number, by moments taken by ``observe`` from up to
    512 training inputs and saved. The prefix (B P E) is multiplied by the root mean square of the decoder's word
    vectors (``Sizes.word_rms``; E ** -0.5 where it is not known).

    Args:
        mapper: the mapper that reads the standardised features; it makes embeddings, no keys and values (for these put
            ``Calibrated`` inside ``Deep``).
        length: learned positions before those of ``mapper``, the same for every input; 0 for none.
        speed: how much faster these are trained than the rest: a step of Adam at rate r moves each number by r *
            ``speed`` word vectors' root mean squares.
    """

    most = 512
    scale: Tensor
    start: Tensor

    def __init__(
        self, sizes: Sizes, *, mapper: Callable[[Sizes], Mapper], length: int = 10, speed: float = 500.0
    ) -> None:
        super().__init__(sizes)
        if length < 0:
            raise InputError(f"Calibrated.length {length}: give a number from 0 on")
        self.mapper = mapper(sizes)
        if deep := next((part for part in self.mapper.modules() if isinstance(part, DeepMapper)), None):
            raise InputError(f"Calibrated: {type(deep).__name__} makes keys and values; put Calibrated inside it")
        self.refuse_observers()
        self.speed = speed
        self.frames = Moments(sizes.frames) if self.mapper.reads_input and self.mapper.reads_frames else None
        self.summary = Moments(sizes.summary) if self.mapper.reads_input and sizes.summary else None
        self.register_buffer("scale", torch.tensor(sizes.word_rms or sizes.width**-0.5))
        self.register_buffer("start", torch.randn(length, sizes.width))
        self.shift = nn.Parameter(torch.zeros(length, sizes.width))

    @property
    def known(self) -> bool:
        """True once it has seen features, or reads none."""
        return all(part is None or bool(part.count) for part in (self.frames, self.summary))

    def observe(self, features: Features) -> None:
        """Take in real frames and summaries of some more inputs."""
        if self.frames is not None:
            self.frames.update(features.frames[features.mask])
        if self.summary is not None:
            self.summary.update(features.pooled)

    def observed(self) -> str:
        """How many frames and summaries it has seen, and the scale of the word vectors."""
        parts = {"frames": self.frames, "summaries": self.summary}
        counts = [f"{int(part.count)} {name}" for name, part in parts.items() if part is not None]
        return f"standardised by {' and '.join(counts) or 'nothing'}; word vectors have a scale of {self.scale:.3g}"

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs → embeddings (B ``length``+P E); InputError before it has seen features."""
        if not self.known:
            raise InputError("Calibrated: has seen no training data, so it knows no moments; train it first")
        if self.frames is not None:
            features = replace(features, frames=self.frames(features.frames) * features.mask[..., None])
        if self.summary is not None:
            features = replace(features, pooled=self.summary(features.pooled))
        prefix: Prefix = self.mapper(features, context)
        learned = (self.scale * (self.start + self.speed * self.shift)).expand(len(prefix.mask), -1, -1)
        embeds = torch.cat([learned, self.scale * prefix.embeds], dim=1)
        return Prefix(embeds, torch.cat([prefix.mask.new_ones(learned.shape[:2]), prefix.mask], dim=1))
