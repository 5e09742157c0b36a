"""Mappers of training on captions alone: noise of the shape and length that is asked for, and the support memory."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.calibrated import Calibrated
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.noisy_summary import NoisySummary
from mmprefix.mappers.support_memory import SupportMemory
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.types import Features

G, E = 12, 8
SIZES = Sizes(0, G, E)
SUMMARY = partial(Linear, reads="summary", length=2)


def features(rows: Tensor) -> Features:
    return Features(torch.zeros(len(rows), 0, 0), torch.zeros(len(rows), 0, dtype=torch.bool), rows)


def unit(count: int, seed: int = 0) -> Tensor:
    rows = torch.randn(count, G, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("shape", ["white", "batch"])
def test_noise_has_the_length_that_is_asked_for_and_vectors_keep_theirs(shape: Literal["white", "batch"]) -> None:
    """At std s a vector and its noisy copy have the cosine 1/√(1 + s²): the noise is at right angles, on average."""
    torch.manual_seed(0)
    rows = unit(400) * 3
    noisy = NoisySummary(SIZES, mapper=SUMMARY, std=2.0, shape=shape).noisy(rows)
    assert_close(noisy.norm(dim=1), torch.full((400,), 3.0))
    cosines = (rows * noisy).sum(1) / 9
    assert float(cosines.mean()) == pytest.approx(1 / math.sqrt(5), abs=0.04)
    assert not torch.equal(noisy, NoisySummary(SIZES, mapper=SUMMARY, std=2.0, shape=shape).noisy(rows))


def test_noise_of_a_batch_moves_only_where_its_vectors_differ() -> None:
    torch.manual_seed(0)
    rows = unit(50)
    rows[:, 3:] = 0.5
    rows = rows / rows.norm(dim=1, keepdim=True)
    rows[:, 3:] = 0.2
    batch = NoisySummary(SIZES, mapper=SUMMARY, std=1.0, shape="batch")
    white = NoisySummary(SIZES, mapper=SUMMARY, std=1.0, shape="white")
    ratio = batch.noisy(rows)[:, 3:]
    assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert float(white.noisy(rows)[:, 3:].std(1).mean()) > 0.1


def test_noise_is_for_training_alone() -> None:
    mapper, rows = NoisySummary(SIZES, mapper=SUMMARY, std=1.0), features(unit(5))
    inner = mapper.mapper
    assert not torch.equal(mapper(rows).embeds, inner(rows).embeds)
    assert torch.equal(mapper.eval()(rows).embeds, inner(rows).embeds)
    assert torch.equal(
        NoisySummary(SIZES, mapper=partial(lambda sizes: inner), std=0.0)(rows).embeds, inner(rows).embeds
    )


def test_the_memory_mixes_its_rows_by_cosine() -> None:
    mapper = SupportMemory(SIZES, mapper=SUMMARY, size=7, temperature=0.1)
    support, picture = unit(7), unit(1, seed=5)[0] * 4
    mapper.observe(features(support[:3] * 2))
    mapper.observe(features(support[3:]))
    assert_close(mapper.memory, support)
    weights = [math.exp(float(row @ picture) / 4 / 0.1) for row in support]
    mean = sum((weight * row for weight, row in zip(weights, support, strict=True)), torch.zeros(G)) / sum(weights)
    assert_close(mapper.projected(picture[None])[0], mean / mean.norm())
    cold = SupportMemory(SIZES, mapper=SUMMARY, size=7, temperature=1e-4)
    cold.observe(features(support))
    assert_close(cold.projected(picture[None])[0], support[(support @ picture).argmax()])


def test_the_memory_is_read_outside_training_alone_and_is_spread_over_the_inputs() -> None:
    mapper = SupportMemory(SIZES, mapper=SUMMARY, size=4)
    with pytest.raises(InputError, match="has seen no training data"):
        mapper(features(unit(2)))
    mapper.observe(features(unit(8)))
    assert mapper.known
    assert_close(mapper.memory, unit(8)[::2])
    rows = features(unit(3, seed=9))
    assert torch.equal(mapper(rows).embeds, mapper.mapper(rows).embeds)
    projected = features(mapper.projected(rows.pooled))
    assert torch.equal(mapper.eval()(rows).embeds, mapper.mapper(projected).embeds)
    few = SupportMemory(SIZES, mapper=SUMMARY, size=4)
    few.observe(features(unit(2)))
    assert_close(few.memory, unit(2).repeat_interleave(2, 0))


def test_of_many_inputs_the_memory_keeps_few_and_spread_ones() -> None:
    """However they come; nothing but the memory is kept for long."""
    rows = unit(100)
    for chunk in (1, 7, 16, 100):
        mapper = SupportMemory(SIZES, mapper=SUMMARY, size=4)
        for start in range(0, 100, chunk):
            mapper.observe(features(rows[start : start + chunk]))
        assert int(mapper.seen) == 100
        places = [int((rows @ row).argmax()) for row in mapper.memory]
        assert_close(mapper.memory, rows[places])
        assert all(abs(place - 25 * number) <= 16 for number, place in enumerate(places))
        assert len(mapper._rows) <= 8  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("build", [partial(NoisySummary, std=0.5), partial(SupportMemory, size=3)])
def test_recipes_rebuild_them_and_calibrated_stands_inside(build: partial[Mapper]) -> None:
    mapper = build(SIZES, mapper=partial(Calibrated, mapper=partial(MLP, length=2, hidden=4)))
    again = builder_from_recipe(to_recipe(mapper), Mapper)(SIZES)
    again.load_state_dict(mapper.state_dict())
    assert to_recipe(again) == to_recipe(mapper)
    assert (mapper.reads_frames, mapper.reads_input, mapper.reads_context) == (False, True, False)


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"NoisySummary\.std -1"):
        NoisySummary(SIZES, mapper=SUMMARY, std=-1.0)
    with pytest.raises(InputError, match=r"NoisySummary\.shape"):
        NoisySummary(SIZES, mapper=SUMMARY, shape="pink")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="size 0"):
        SupportMemory(SIZES, mapper=SUMMARY, size=0)
    with pytest.raises(InputError, match="summary"):
        NoisySummary(Sizes(4, 0, E), mapper=Linear)
