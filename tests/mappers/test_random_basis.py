"""A random basis and layers of queries, which several mappers share."""

from __future__ import annotations

import pytest
import torch

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.query_layers import query_layers
from mmprefix.mappers.random_basis import need_rank
from mmprefix.mappers.ulpt import ULPT

E = 8


@torch.no_grad()
@pytest.mark.parametrize(("rank", "exact"), [(E, True), (3, False)])
def test_a_basis_fits_embeddings_as_least_squares_do(rank: int, exact: bool) -> None:
    mapper = ULPT(Sizes(0, 0, E), length=5, rank=rank)
    embeds = torch.randn(5, E)
    fitted = mapper.through_basis(mapper.fit(embeds))
    rest = embeds - embeds.mean(0)
    expected = torch.linalg.lstsq(mapper.basis.T, rest.T).solution.T @ mapper.basis + embeds.mean(0)
    torch.testing.assert_close(fitted, expected, rtol=1e-3, atol=1e-4)
    assert torch.allclose(fitted, embeds, atol=1e-3) == exact


def test_a_basis_has_vectors_and_heads_divide_a_width() -> None:
    mapper = ULPT(Sizes(0, 0, E), length=5, rank=2)
    with pytest.raises(InputError, match=r"ULPT\.rank 0: give a number from 1 on"):
        need_rank(mapper, 0)
    with pytest.raises(InputError, match=r"ULPT: heads=3 does not divide the width 8"):
        query_layers(mapper, 8, 3, layers=1, dropout=0.0)
