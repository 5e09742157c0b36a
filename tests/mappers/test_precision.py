"""Every mapper in mixed and in half precision, and every method's batch beside its items, with padding and without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmprefix.mappers.base import Mapper
from mmprefix.types import AnyPrefix, Features
from tests.mappers.test_contract import BUILD, features, pooled_of
from tests.mappers.test_methods import METHODS, numbers_of, ready, real, shown

HALF = [torch.bfloat16, torch.float16]


def real_numbers(prefix: AnyPrefix) -> Tensor:
    """Numbers of the real positions."""
    numbers, mask = numbers_of(prefix), real(prefix)
    if numbers.shape[1] != mask.shape[1]:  # updates of the text behind the positions
        mask = torch.cat([mask, mask.new_ones(len(mask), numbers.shape[1] - mask.shape[1])], dim=1)
    return numbers[mask].float()


def case(name: str) -> tuple[Mapper, Features]:
    """Mapper of a row of either contract, ready to be used, and features for it."""
    if name in METHODS:
        mapper = ready(name)
        return mapper, shown(mapper)
    torch.manual_seed(1)
    mapper = BUILD[name]()
    return mapper, features([7, 4, 1], pooled_of(mapper))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", [*METHODS, *BUILD])
def test_a_step_in_mixed_precision_has_finite_gradients(name: str, dtype: torch.dtype) -> None:
    mapper, shows = case(name)
    with torch.autocast("cpu", dtype):
        prefix = mapper.train()(shows)
    real_numbers(prefix).square().mean().backward()
    for parameter, values in mapper.named_parameters():
        assert values.grad is not None, parameter
        assert values.grad.isfinite().all(), parameter


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", [*METHODS, *BUILD])
def test_half_precision_makes_nearly_the_same_prefix_merged_or_not(name: str, dtype: torch.dtype) -> None:
    mapper, shows = case(name)
    with torch.no_grad():
        full = real_numbers(mapper.eval()(shows))
        rounded = mapper.to(dtype)
        for one in (rounded, rounded.merged()):
            assert_close(real_numbers(one(shows.to_dtype(dtype))), full, rtol=0.05, atol=0.05 * full.abs().max().item())


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_batch_equals_its_items_and_padding_is_not_read(name: str) -> None:
    mapper = ready(name).eval()
    clean = shown(mapper)
    together = mapper(replace(clean, frames=torch.where(clean.mask[..., None], clean.frames, 1e3)))
    for b, count in enumerate(clean.mask.sum(1).tolist()):
        row = slice(b, b + 1)
        alone = mapper(Features(clean.frames[row, :count], clean.mask[row, :count], clean.pooled[row]))
        assert_close(numbers_of(together)[row], numbers_of(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_without_a_real_frame_reads_as_one_without_frames(name: str) -> None:
    mapper = ready(name).train()
    shows = shown(mapper)
    empty = replace(shows, mask=shows.mask.clone())
    empty.mask[1:2] = False
    real_numbers(mapper(empty)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mapper.parameters())
    none = Features(shows.frames[:, :0], shows.mask[:, :0], shows.pooled)
    mapper.eval()
    assert_close(numbers_of(mapper(empty))[1:2], numbers_of(mapper(none))[1:2], rtol=1e-4, atol=1e-5)
