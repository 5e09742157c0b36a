"""Heads against their formulas written out for one row; starts, WiSE-FT, shots and half-batches; ImageNet-ESC."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from mmprefix.errors import InputError
from mmprefix.training.few_shots import imagenet_esc
from mmprefix.training.few_shots.heads import (
    AdapterHeads,
    LinearHeads,
    PartialHeads,
    random_start,
    wise_ft,
    zero_shot_start,
)
from mmprefix.training.few_shots.imagenet_esc import IMAGENET_ESC_27
from mmprefix.training.few_shots.samples import Run, Shots, batch_indices, draw_shots, fits, halves, joined

R, B, C, W = 2, 3, 4, 8


@pytest.fixture
def start() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(R, C, W)


def length(row: torch.Tensor) -> float:
    return math.sqrt(float(row.square().sum()))


@torch.no_grad()
def test_a_linear_head_is_a_scaled_cosine_to_unscaled_weights(start: torch.Tensor) -> None:
    own, other = torch.randn(R, B, W), torch.randn(R, 1, W) * 9
    logits = LinearHeads(start)(own, other)
    assert logits.shape == (R, B + 1, C)
    for run in range(R):
        for number, row in enumerate([*own[run], *other[run]]):
            by_hand = torch.stack([100 * (start[run, c] @ row) / length(row) for c in range(C)])
            assert_close(logits[run, number], by_hand, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_adapter_adds_a_fifth_of_two_layers_to_four_fifths_of_the_row(start: torch.Tensor) -> None:
    own = torch.randn(R, B, W)
    heads = AdapterHeads(start)
    assert (heads.down.shape, heads.up.shape) == ((R, W // 4, W), (R, W, W // 4))
    logits = heads(own)
    for run in range(R):
        for number, row in enumerate(own[run]):
            unit = row / length(row)
            inner = (heads.down[run] @ unit).clamp(min=0)
            mixed = 0.2 * (heads.up[run] @ inner).clamp(min=0) + 0.8 * unit
            assert_close(logits[run, number], 100 * (start[run] @ mixed) / length(mixed), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="no quarter"):
        AdapterHeads(torch.randn(1, 2, 3))


def test_a_partial_head_trains_the_layer_of_its_own_sense_alone(start: torch.Tensor) -> None:
    layer, own, other = torch.randn(W, 5), torch.randn(R, B, 5), torch.randn(R, B, W)
    heads = PartialHeads(start, layer)
    logits = heads(own, other)
    with torch.no_grad():
        row = layer @ own[1, 0]
        assert_close(logits[1, 0], math.exp(4) * (start[1] @ row) / length(row), rtol=1e-4, atol=1e-4)
        assert_close(logits[1, B], math.exp(4) * (start[1] @ other[1, 0]) / length(other[1, 0]), rtol=1e-4, atol=1e-4)
    logits[:, B:].sum().backward()
    assert heads.layer.grad is not None
    assert not heads.layer.grad.any()
    heads(own).sum().backward()
    assert heads.layer.grad.any()


def test_a_zero_shot_start_averages_rows_as_they_are() -> None:
    """Scaling them first is another start: the longer row is to count more."""
    shots = Shots(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]]), torch.tensor([0, 0, 1]))
    assert_close(zero_shot_start(shots, 2), torch.tensor([[3 / math.sqrt(10), 1 / math.sqrt(10)], [0.0, 1.0]]))
    half = math.sqrt(0.5)
    assert_close(zero_shot_start(shots, 2, unit_rows=True), torch.tensor([[half, half], [0.0, 1.0]]))
    with pytest.raises(InputError, match="class 2 has no row"):
        zero_shot_start(shots, 3)


def test_a_random_start_is_torch_s_and_its_seed_s() -> None:
    start = random_start(50, 16, 3)
    assert torch.equal(start, random_start(50, 16, 3))
    assert not torch.equal(start, random_start(50, 16, 4))
    assert start.abs().max() <= 1 / math.sqrt(16)
    torch.manual_seed(0)
    assert_close(start.std(), torch.nn.Linear(16, 50, bias=False).weight.detach().std(), rtol=0.1, atol=0)


@torch.no_grad()
def test_wise_ft_lies_half_way_to_the_scaled_zero_shot_weights(start: torch.Tensor) -> None:
    heads, names = LinearHeads(start), torch.randn(C, W) * 5
    mixed = wise_ft(heads, names)
    for run in range(R):
        for label in range(C):
            assert_close(mixed.weight[run, label], start[run, label] / 2 + names[label] / length(names[label]) / 2)
    assert torch.equal(heads.weight, start)
    assert torch.equal(wise_ft(heads, names, 0.0).weight, start)


def test_draws_have_so_many_rows_of_each_class() -> None:
    pool = Shots(torch.arange(40.0)[:, None], torch.arange(40) % 4)
    first, second = draw_shots(pool, 3, 0), draw_shots(pool, 3, 1)
    assert first.labels.bincount().tolist() == [3, 3, 3, 3]
    assert torch.equal(first.rows.flatten() % 4, first.labels.float())
    assert len(set(first.rows.flatten().tolist())) == 12
    assert not torch.equal(first.rows, second.rows)
    assert torch.equal(first.rows, draw_shots(pool, 3, 0).rows)
    with pytest.raises(InputError, match="count 11: class 0 has 10 rows"):
        draw_shots(pool, 11, 0)


def test_half_of_a_batch_is_of_the_other_senses() -> None:
    rows = Shots(torch.randn(10, 2), torch.arange(10))
    alone, both = Run(rows, rows, rows.rows), Run(rows, rows, rows.rows, joined(rows, rows))
    assert (halves(8, alone), halves(8, both), halves(9, both)) == ((8, 0), (4, 4), (5, 4))
    assert both.other is not None
    assert len(both.other) == 20


def test_a_part_of_a_batch_is_smaller_than_its_set() -> None:
    """With as many rows as its set, or more, a batch size is no setting and is skipped."""
    ten, thirty = (Shots(torch.randn(count, 2), torch.zeros(count)) for count in (10, 30))
    start = torch.zeros(1, 2)
    assert [fits(size, Run(ten, ten, start)) for size in (8, 10, 32)] == [True, False, False]
    assert [fits(size, Run(ten, ten, start, thirty)) for size in (8, 18, 20)] == [True, True, False]
    assert [fits(size, Run(thirty, ten, start, ten)) for size in (8, 18, 20)] == [True, True, False]


def test_batches_begin_anew_when_too_few_are_left() -> None:
    order = batch_indices(10, 4, 7, torch.Generator().manual_seed(0))
    assert order.shape == (7, 4)
    for epoch in (order[0:2], order[2:4], order[4:6]):
        assert len(set(epoch.flatten().tolist())) == 8
    assert not torch.equal(order[0:2], order[2:4])


def test_imagenet_esc_has_27_classes_and_19_without_the_loose_ones() -> None:
    large, small = imagenet_esc(), imagenet_esc(19)
    assert (len(large), len(set(large.values())), len(small)) == (27, 27, 19)
    assert large == IMAGENET_ESC_27
    assert small.items() < large.items()
    left_out = (
        "can_opening church_bells crackling_fire toilet_flush water_drops drinking_sipping pouring_water sea_waves"
    )
    assert set(large.values()) - set(small.values()) == set(left_out.split())
    assert (small[7], small[404], large[977]) == ("rooster", "airplane", "sea_waves")
    assert all(0 <= index < 1000 for index in large)
    with pytest.raises(InputError, match="classes 50"):
        imagenet_esc(50)
