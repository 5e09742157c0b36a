"""Means, weighted sums and joins of users' prefixes; what does not belong together is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmprefix.errors import InputError
from mmprefix.users.prefixes import joined_prefix, mean_prefix, weighted_prefix

pytestmark = pytest.mark.numeric


def prefixes(count: int, length: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return list(torch.randn(count, length, 4))


def test_the_mean_is_that_of_numpy() -> None:
    several = prefixes(5)
    assert np.allclose(mean_prefix(several), np.mean([value.numpy() for value in several], 0), atol=1e-6)
    assert torch.allclose(mean_prefix(several[:1]), several[0])


def test_a_weighted_sum_is_that_of_numpy() -> None:
    several, weights = prefixes(3), [0.5, -0.25, 2.0]
    expected = np.average([value.numpy() for value in several], 0, weights) * sum(weights)
    assert np.allclose(weighted_prefix(several, weights), expected, atol=1e-6)
    assert torch.allclose(weighted_prefix(several, [0.0, 1.0, 0.0]), several[1])
    assert weighted_prefix([value.half() for value in several], weights).dtype == torch.float16


def test_joined_prefixes_stand_behind_each_other() -> None:
    first, second = prefixes(1, length=2)[0], prefixes(1, length=5)[0]
    both = joined_prefix([first, second])
    assert torch.equal(both[:2], first)
    assert torch.equal(both[2:], second)


def test_what_does_not_belong_together_is_refused() -> None:
    three, two = prefixes(1, length=3)[0], prefixes(1, length=2)[0]
    for refused in (lambda: mean_prefix([three, two]), lambda: mean_prefix([])):
        with pytest.raises(InputError, match="cannot be added"):
            refused()
    with pytest.raises(InputError, match="weights: 1 for 2 prefixes"):
        weighted_prefix([three, three], [1.0])
    for several in ([three, three[:, :2]], []):
        with pytest.raises(InputError, match="do not belong to one model"):
            joined_prefix(several)
