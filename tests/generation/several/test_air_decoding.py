"""Air-Decoding's reconstruction of a distribution, number by number, and where probabilities are 0 and 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.generation.several import AirDecoding

V = 6


def log_softmax(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


@pytest.mark.parametrize("attributes", [2, 3])
@pytest.mark.parametrize("strength", [0.0, 1.0, 20.0])
def test_each_number_is_that_of_the_formula(attributes: int, strength: float) -> None:
    """Share r = a_1 / sum of s_j a_j with a = -1 / log p, s_j the product of a_j / a_1 over what is written."""
    log_probs = log_softmax(1 + attributes, 2, 3, V, seed=0)
    path = log_softmax(1 + attributes, 2, 3, 4, V, seed=1)[..., 0]  # of four tokens so far
    joined = AirDecoding(strength, top_k=V)(log_probs, path)
    for b in range(2):
        for w in range(3):
            for v in range(V):
                a = [-1 / float(log_probs[1 + i, b, w, v]) for i in range(attributes)]
                shares = [
                    math.prod(float(path[1, b, w, t]) / float(path[1 + j, b, w, t]) for t in range(4))
                    for j in range(attributes)
                ]
                r = a[0] / sum(s * own for s, own in zip(shares, a, strict=True))
                expected = float(log_probs[0, b, w, v]) + strength * math.log(r)
                assert float(joined[b, w, v]) == pytest.approx(expected, abs=1e-3)


def test_the_models_likeliest_tokens_alone_stay_by_what_is_joined() -> None:
    log_probs, path = log_softmax(3, 1, 1, V, seed=2), torch.zeros(3, 1, 1, 0)
    every, few = AirDecoding(top_k=V)(log_probs, path), AirDecoding(top_k=2)(log_probs, path)
    kept = every.topk(2).indices
    assert torch.equal(few.gather(-1, kept), every.gather(-1, kept))
    assert int((few.softmax(-1) > 0).sum()) == 2


def test_certain_and_impossible_tokens_are_numbers() -> None:
    sure = torch.tensor([0.0, -math.inf, -math.inf])
    log_probs = torch.stack([torch.full((3,), 1 / 3).log(), sure, sure.roll(1)])[:, None, None]
    path = torch.tensor([-1.0, 0.0, -math.inf])[:, None, None, None]
    joined = AirDecoding(top_k=3)(log_probs, path)
    assert not joined.isnan().any()
    assert int(joined.argmax()) == 0  # what the wanted attribute is sure of


def test_fewer_than_two_attributes_are_refused() -> None:
    with pytest.raises(InputError, match=r"two attributes, the wanted first, not 2"):
        AirDecoding().require(2)
    AirDecoding().require(3)
