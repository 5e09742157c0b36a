"""Training of heads: each as it would be alone, with torch's AdamW; the best state by validation; the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from mmprefix.errors import InputError
from mmprefix.training.few_shots import grid
from mmprefix.training.few_shots.adam import SideBySideAdamW, rate_at
from mmprefix.training.few_shots.grid import Grid, Setting, fit, fit_best
from mmprefix.training.few_shots.heads import AdapterHeads, Heads, LinearHeads, random_start, zero_shot_start
from mmprefix.training.few_shots.samples import Run, Shots, batch_indices

C, W = 3, 8


def shots(count: int, seed: int, noise: float = 0.8) -> Shots:
    """Rows around three centres, which are the same for every seed."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(C, W, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % C
    return Shots(centres[labels] + noise * torch.randn(count, W, generator=generator), labels)


def run_of(seed: int, other: bool = False) -> Run:
    texts = shots(9, 50, 0.1) if other else None
    return Run(shots(12, seed), shots(6, seed + 10), random_start(C, W, seed), texts, seed)


def test_a_run_among_others_is_trained_as_alone_by_torch() -> None:
    runs = [run_of(1, other=True), run_of(2, other=True)]
    settings = [Setting(1e-2, 0.0, 8), Setting(1e-3, 0.1, 8)]
    fitted = fit(LinearHeads, runs, settings, iterations=60, every=1000)
    weight = nn.Parameter(runs[1].start.clone())
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.1)
    generator = torch.Generator().manual_seed(2)
    own, other = batch_indices(12, 4, 60, generator), batch_indices(9, 4, 60, generator)
    texts = runs[1].other
    assert texts is not None
    for step in range(60):
        optimizer.param_groups[0]["lr"] = float(rate_at(step, torch.tensor([1e-3]), 60))
        batch = [runs[1].own.take(own[step]), texts.take(other[step])]
        rows, labels = torch.cat([part.rows for part in batch]), torch.cat([part.labels for part in batch])
        loss = cross_entropy(math.exp(4.60517) * normalize(rows, dim=1) @ weight.T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert fitted[1][1].iteration == 60  # better than its start, or nothing is compared
    assert_close(fitted[1][1].heads.weight[0].detach(), weight.detach(), rtol=1e-3, atol=1e-4)


def test_steps_of_side_by_side_adamw_are_torch_s() -> None:
    torch.manual_seed(0)
    start, rates, decays = torch.randn(2, 4, 3), torch.tensor([0.1, 0.01]), torch.tensor([0.0, 0.3])
    both = nn.Parameter(start.clone())
    optimizer = SideBySideAdamW([both], decays)
    alone = [nn.Parameter(start[run].clone()) for run in range(2)]
    twins = [torch.optim.AdamW([alone[run]], float(rates[run]), weight_decay=float(decays[run])) for run in range(2)]
    for step in range(20):
        target = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        (both - target).square().sum().backward()
        optimizer.step(rates)
        for run, twin in enumerate(twins):
            twin.zero_grad()
            (alone[run] - target).square().sum().backward()
            twin.step()
    assert_close(both.detach(), torch.stack([part.detach() for part in alone]), rtol=1e-5, atol=1e-6)


def test_the_rate_warms_up_from_1e_5_and_falls_along_a_cosine() -> None:
    rates = torch.tensor([1e-3, 1e-4])
    assert_close(rate_at(0, rates, 12800), torch.tensor([1e-5, 1e-5]))
    assert_close(rate_at(25, rates, 12800), rates / 2)
    assert_close(rate_at(50, rates, 12800), rates)
    assert_close(rate_at(6450, rates, 12800), rates / 2)
    assert float(rate_at(12799, rates, 12800)[0]) < 1e-6


def test_the_start_is_validated_too_and_kept_where_training_only_harms() -> None:
    """Validation begins at iteration 0: a zero-shot start that is never beaten stays."""
    good = shots(30, 3, 0.01)
    wrong = Shots(good.rows, (good.labels + 1) % C)
    (best,) = fit_best(
        LinearHeads, [Run(wrong, good, zero_shot_start(good, C), None, 0)], Grid((1e-2,), (0.0,), (8,)), iterations=300
    )
    assert (best.iteration, best.val, best.curve[0]) == (0, 1.0, 1.0)
    assert best.curve[-1] < 0.5
    assert len(best.curve) == 4
    assert_close(best.heads.weight[0].detach(), zero_shot_start(good, C))


def test_the_kept_state_has_the_accuracy_that_was_seen() -> None:
    runs = [run_of(seed, other=True) for seed in range(3)]
    for make in (LinearHeads, AdapterHeads):
        for fitted, run in zip(
            fit_best(make, runs, Grid((1e-2, 1e-3), (0.0,), (4, 8)), iterations=200), runs, strict=True
        ):
            assert float(fitted.heads.accuracy(run.val.rows[None], run.val.labels[None])) == pytest.approx(fitted.val)
            assert fitted.val == max(fitted.curve)
            assert fitted.val > 0.6


def test_of_a_grid_each_run_takes_its_first_best_setting() -> None:
    runs = [run_of(seed) for seed in range(2)]
    choice = Grid((1e-9, 1e-2), (0.0, 0.1), (4,))
    best = fit_best(LinearHeads, runs, choice, iterations=150)
    for number, fitted in enumerate(best):
        row = [fit(LinearHeads, [runs[number]], [Setting(lr, wd, 4)], iterations=150)[0][0]
               for lr in choice.rates for wd in choice.decays]  # fmt: skip
        expected = max(row, key=lambda one: one.val)
        assert (fitted.val, fitted.setting) == (pytest.approx(expected.val), expected.setting)


def test_sizes_that_do_not_fit_are_skipped_and_none_is_an_error() -> None:
    runs = [run_of(0)]
    (best,) = fit_best(LinearHeads, runs, Grid((1e-3,), (0.0,), (8, 32)), iterations=10)
    assert best.setting.batch_size == 8
    with pytest.raises(InputError, match="none is smaller than the 12 training rows"):
        fit_best(LinearHeads, runs, Grid((1e-3,), (0.0,), (12, 32)), iterations=10)


def test_the_published_grids() -> None:
    assert Grid((1e-3, 1e-4), (0.0, 0.01, 1e-4), (8, 32)) == grid.LINEAR
    assert Grid((1e-5, 1e-6, 1e-7), (0.0, 1e-3, 1e-5), (8,)) == grid.PARTIAL
    assert Grid((1e-4, 1e-5, 1e-6, 1e-7), (0.0, 1e-3, 1e-5), (8,)) == grid.ADAPTER
    assert (grid.ITERATIONS, grid.EVERY) == (12_800, 100)


def test_rows_of_another_sense_help_a_class_that_has_one_shot() -> None:
    """One noisy row a class of the own sense against the same with clean rows of another."""
    test, gains = shots(300, 77), list[float]()
    for seed in range(6):
        own, val = shots(3, seed, 2.0), shots(3, seed + 30)
        texts = shots(9, 50, 0.1)
        alone = Run(own, val, random_start(C, W, seed), None, seed)
        both = Run(own, val, zero_shot_start(texts, C), texts, seed)
        fitted: list[Heads] = [
            fit_best(LinearHeads, [run], Grid((1e-2,), (0.0,), (2,)), iterations=200)[0].heads for run in (alone, both)
        ]
        first, second = (float(heads.accuracy(test.rows[None], test.labels[None])) for heads in fitted)
        gains.append(second - first)
    assert sum(gains) / len(gains) > 0.1
