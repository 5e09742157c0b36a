"""Activations in few bits over one fixed range for each matrix, set beforehand: what a prefix of outliers is for.

PrefixQuant (Chen et al.), https://arxiv.org/abs/2410.05265, whose activations are static, one range a tensor.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.distillation.outlier_prefix import nll, watched
from mmprefix.types import AnyPrefix


def activation_scales(
    decoder: ComposedDecoder, prefix: AnyPrefix | None, texts: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Greatest number that enters each matrix on ``texts`` behind ``prefix``, which is read without being counted."""
    scales: dict[str, float] = {}

    def look(name: str, values: Tensor) -> None:
        scales[name] = max(scales.get(name, 0.0), float(values.detach().abs().max()))

    for text in texts:
        with watched(decoder, look):
            nll(decoder, prefix, text)
    return scales


@contextmanager
def static_activations(decoder: ComposedDecoder, scales: Mapping[str, float], bits: int) -> Generator[None, None, None]:
    """Within this context what enters each matrix is rounded to ``bits`` bits over one fixed range, its ``scales``."""
    most = 2 ** (bits - 1) - 1

    def rounded(name: str, values: Tensor) -> Tensor:
        step = max(scales[name], 1e-8) / most
        return (values / step).round().clamp(-most - 1, most) * step

    with watched(decoder, rounded):
        yield
