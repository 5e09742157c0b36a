"""Prefixes made of others: the mean of users for one who is new, weighted sums, two behind each other.

All take and give the numbers of a user (P n), as a store keeps them (``mmprefix.inference.user_prefixes``): P positions
of n numbers, which are embeddings, keys and values, or the numbers of ULPT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmprefix.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def mean_prefix(prefixes: Sequence[Tensor]) -> Tensor:
    """Mean (P n) of prefixes of one shape: a start for a user who is new."""
    _require_alike(prefixes)
    return weighted_prefix(prefixes, [1 / len(prefixes)] * len(prefixes))


def weighted_prefix(prefixes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum (P n) of prefixes of one shape, each times its weight.

    Weights that add up to 1 leave the prefix where prefixes are; others change its scale, and ULPT's shift, which all
    users share, does not follow. Raises InputError for prefixes of several shapes, none, or another number of weights.
    """
    import torch

    _require_alike(prefixes)
    if len(weights) != len(prefixes):
        raise InputError(f"weights: {len(weights)} for {len(prefixes)} prefixes; give one each")
    return torch.einsum("u,u...->...", torch.tensor(weights, dtype=prefixes[0].dtype), torch.stack(list(prefixes)))


def joined_prefix(prefixes: Sequence[Tensor]) -> Tensor:
    """Prefixes (P1 n), (P2 n) ... one behind the other, (P1+P2+... n): a user who has the manner of several."""
    import torch

    if len({prefix.shape[1:] for prefix in prefixes}) != 1:
        raise InputError(f"prefixes: {_shapes(prefixes)} do not belong to one model; give some of the same model")
    return torch.cat(list(prefixes))


def _require_alike(prefixes: Sequence[Tensor]) -> None:
    if len({prefix.shape for prefix in prefixes}) != 1:
        raise InputError(f"prefixes: {_shapes(prefixes)} cannot be added; give some of one model and length")


def _shapes(prefixes: Sequence[Tensor]) -> str:
    return ", ".join(" x ".join(map(str, prefix.shape)) for prefix in prefixes) or "none"
