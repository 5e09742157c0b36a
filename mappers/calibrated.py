"""Any mapper between standardised features and word vectors: it learns at once on pretrained decoders as they come.

Two things keep a fresh mapper from learning. Features of a pretrained encoder have a large common part and numbers of
very different spread, and an optimizer's first steps are of one size whatever the size of a word vector is. Here
features are standardised, the prefix is measured in word vectors, and what all inputs share (that a caption comes now)
is left to a learned prompt that is added to it. The prompt begins as words and moves fast, as prompt tuning found best:
The Power of Scale for Parameter-Efficient Prompt Tuning (Lester, Al-Rfou, Constant), https://arxiv.org/abs/2104.08691.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Mapper, Sizes
from mmprefix.mappers.combinator import Combinator
from mmprefix.mappers.observer import Observer, TextReader
from mmprefix.types import Features, Prefix

_INSIDE = 0.1  # least scale of a prefix that layers of another mapper read
_SHARE = 0.25  # what an untrained mapper adds to the prompt, as a share of the scale of word vectors
_START = "A short description of what is there to see or to hear:"  # repeated words learned more slowly
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


class Calibrated(Combinator, Observer):
    """Prefix of ``mapper`` over standardised features, in the scale of word vectors, added to a learned prompt.

    Features (frames B T D, summary B G) are standardised number by number, by moments taken by ``observe`` from up to
    512 training inputs and saved. The prefix (B P E) is scaled so that it begins as a quarter of word vectors, in root
    mean square; their scale is that of the words that the prompt begins as. The prompt has a vector for each position,
    one for all where P depends on the number of frames. Inside ``Deep``, whose layers read it, the scale is 0.1 at
    least: Whisper's word vectors (0.02) are small beside the biases of these layers, and the input was lost there.

    Args:
        mapper: the mapper that reads the standardised features; it makes embeddings, no keys and values (for these put
            ``Calibrated`` inside ``Deep``).
        start: a text whose word vectors, repeated as needed, are the prompt before training.
        speed: how much faster the prompt is trained than the rest: a step of Adam at rate r moves each number by r *
            ``speed`` times the scale of word vectors.
        dropout: probability of zeroing a standardised number of the features in training.
    """

    most = 512
    gain: Tensor
    scale: Tensor
    start: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        mapper: Callable[[Sizes], Mapper],
        start: str = _START,
        speed: float = 250.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(sizes)
        if not 0 <= dropout < 1:
            raise InputError(f"Calibrated.dropout {dropout}: give a probability from 0 on, below 1")
        self.mapper = mapper(sizes)
        if deep := next((part for part in self.mapper.modules() if isinstance(part, DeepMapper)), None):
            raise InputError(f"Calibrated: {type(deep).__name__} makes keys and values; put Calibrated inside it")
        self.refuse_observers()
        self.text, self.speed, self.dropout = start, speed, dropout
        self.frames = Moments(sizes.frames) if self.mapper.reads_input and self.mapper.reads_frames else None
        self.summary = Moments(sizes.summary) if self.mapper.reads_input and sizes.summary else None
        positions, size = _trial(self.mapper)
        self.register_buffer("gain", torch.where(size > 0, _SHARE / size, torch.ones_like(size)))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("start", torch.zeros(positions, sizes.width))
        self.shift = nn.Parameter(torch.zeros_like(self.start))

    @property
    def known(self) -> bool:
        """True once it knows the scale of word vectors, and has seen the features that it reads."""
        return bool(self.scale) and all(part is None or bool(part.count) for part in (self.frames, self.summary))

    def begin(self, reader: TextReader) -> None:
        """Begin the prompt with the words of its text (N E); InputError for a text without any."""
        words = reader.word_vectors(self.text)
        if not len(words):
            raise InputError(f"Calibrated.start {self.text!r}: has no tokens; give a word")
        self.scale.copy_(words.square().mean().sqrt())
        if len(self.start) == 1:
            self.start.copy_(words.mean(0, keepdim=True))
        else:
            self.start.copy_(words.repeat(-(-len(self.start) // len(words)), 1)[: len(self.start)])
        if self.inside and self.scale < _INSIDE:
            self.start *= _INSIDE / self.scale
            self.scale.fill_(_INSIDE)

    def observe(self, features: Features) -> None:
        """Take in real frames and summaries of some more inputs."""
        if self.frames is not None:
            self.frames.update(features.frames[features.mask])
        if self.summary is not None:
            self.summary.update(features.pooled)

    def observed(self) -> str:
        """How many frames and summaries it has seen, and the scale of its prefix."""
        parts = {"frames": self.frames, "summaries": self.summary}
        counts = [f"{int(part.count)} {name}" for name, part in parts.items() if part is not None]
        return f"standardised by {' and '.join(counts) or 'nothing'}; the prefix is in units of {self.scale:.3g}"

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Features of B inputs → embeddings (B P E) and mask (B P); InputError before a training began."""
        if not self.known:
            raise InputError("Calibrated: has seen no training data, so it knows no moments; train it first")
        if self.frames is not None:
            features = replace(features, frames=self._dropped(self.frames(features.frames) * features.mask[..., None]))
        if self.summary is not None:
            features = replace(features, pooled=self._dropped(self.summary(features.pooled)))
        prefix: Prefix = self.mapper(features, context)
        return replace(prefix, embeds=self.start + self.scale * (self.speed * self.shift + self.gain * prefix.embeds))

    def _dropped(self, numbers: Tensor) -> Tensor:
        return F.dropout(numbers, self.dropout, self.training)


@torch.no_grad()
def _trial(mapper: Mapper) -> tuple[int, Tensor]:
    """Positions of the prefix of ``mapper`` (1 where they depend on the number of frames), and its root mean square.

    It reads random features as they are once standardised; the generator of random numbers stays as it is.
    """
    sizes, training, lengths = mapper.sizes, mapper.training, set[int]()
    mapper.eval()
    random = cast(Any, torch.random)  # without types
    with random.fork_rng(devices=[]):
        random.manual_seed(0)
        for count in (8, 16):
            features = _random(32, count if sizes.frames else 0, sizes.frames, sizes.summary)
            context = _random(32, 1, sizes.context_frames, sizes.context_summary) if mapper.reads_context else None
            prefix: Prefix = cast(Any, mapper)(features, context)
            lengths.add(prefix.mask.shape[1])
    mapper.train(training)
    return lengths.pop() if len(lengths) == 1 else 1, prefix.embeds.square().mean().sqrt()


def _random(inputs: int, count: int, frames: int, summary: int) -> Features:
    mask = torch.ones(inputs, count, dtype=torch.bool)
    return Features(torch.randn(inputs, count, frames), mask, torch.randn(inputs, summary))
