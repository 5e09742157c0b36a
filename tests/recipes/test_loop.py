"""Training loop of small parts: equal to the bit to a loop written by hand, without side effects."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.recipes.pretrain.loop import AveragedWeights, JoinedOptimizer, LogLines, Losses, every_hundred, train

STEPS = 7


@dataclass(frozen=True)
class Scene:
    text: str


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))


def batches() -> Iterator[Tensor]:
    """Draw batches from the global generator, as most programs do, so that dropout and batches alternate on it."""
    while True:
        yield torch.randn(5, 3)


def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def reference_loop(model: nn.Module) -> list[float]:
    """Train ``model`` as the loop should; return the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    rates, losses = schedule(optimizer), []
    model.train()
    for batch, _ in zip(batches(), range(STEPS), strict=False):
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        rates.step()
        losses.append(loss.item())
    model.eval()
    return losses


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for (name, value), expected in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def test_steps_equal_those_of_a_loop_written_by_hand():
    model, expected = network(), network()
    torch.manual_seed(1)
    losses = reference_loop(expected)
    seen: list[float] = []
    watch = LambdaCallback(on_train_batch_end=lambda trainer, module, outputs, *_: seen.append(outputs["loss"].item()))
    torch.manual_seed(1)
    train(
        model,
        lambda batch: model(batch).square().mean(),
        batches(),
        steps=STEPS,
        schedule=schedule(torch.optim.AdamW(model.parameters(), 0.1)),
        max_norm=0.01,
        callbacks=[watch],
    )
    assert seen == losses
    assert_same(model, expected)
    assert not any(part.training for part in model.modules())


def test_batches_may_be_of_any_type_and_are_drawn_one_at_a_time():
    model = nn.Linear(1, 1)
    order: list[str] = []

    def scenes() -> Iterator[list[Scene]]:
        while True:
            order.append("draw")
            yield [Scene("a dog")]

    def loss(batch: list[Scene]) -> Losses:
        order.append(batch[0].text)
        return {"loss": model.weight.sum(), "other": torch.tensor(2.0)}

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    texts: list[tuple[int, float]] = []

    def line(step: int, losses: Losses, seconds: float) -> None:
        assert seconds >= 0
        texts.append((step, losses["other"].item()))

    train(model, loss, scenes(), steps=2, schedule=schedule(optimizer), callbacks=[LogLines(logging.getLogger(), line)])
    assert order == ["draw", "a dog"] * 2
    assert texts == [(0, 2.0), (1, 2.0)]


@pytest.mark.parametrize("updates", [0, 1])
def test_weights_and_statistics_are_averaged(updates: int):
    model = network()
    expected = copy.deepcopy(model)
    averaged = AveragedWeights(model, 0.3, updates)
    snapshots: list[dict[str, Tensor]] = []
    snapshot = LambdaCallback(on_train_batch_end=lambda *_: snapshots.append(copy.deepcopy(model.state_dict())))
    train(
        model,
        lambda batch: model(batch).square().mean(),
        batches(),
        steps=STEPS,
        schedule=schedule(torch.optim.AdamW(model.parameters(), 0.1)),
        callbacks=[averaged, snapshot],
    )
    for count, weights in enumerate(snapshots, start=updates):
        share = min(0.3, (1 + count) / (10 + count))
        for name, value in expected.state_dict().items():
            value.copy_(share * value + (1 - share) * weights[name] if value.is_floating_point() else weights[name])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name])
    assert model[1].num_batches_tracked == STEPS
    assert not torch.allclose(snapshots[-1]["0.weight"], model.state_dict()["0.weight"])
    assert not averaged.average.training


def test_joined_optimizers_step_together_and_share_a_schedule():
    model, expected = network(), network()
    inputs = torch.randn(5, 3)

    def both(model: nn.Sequential) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.AdamW(model[3].parameters(), 0.2)]

    separate = both(expected)
    rates = [schedule(optimizer) for optimizer in separate]
    for _ in range(STEPS):
        expected.zero_grad()
        F.mse_loss(expected.eval()(inputs), inputs[:, :1]).backward()
        for optimizer, rate in zip(separate, rates, strict=True):
            optimizer.step()
            rate.step()

    def loss(batch: Tensor) -> Tensor:
        return F.mse_loss(model.eval()(batch), batch[:, :1])

    joined = JoinedOptimizer(both(model))
    train(model, loss, [inputs] * STEPS, steps=STEPS, schedule=schedule(joined))
    assert_same(model, expected)
    assert [group["lr"] for group in joined.param_groups] == [0.1 / (1 + STEPS), 0.2 / (1 + STEPS)]


def test_only_the_lines_of_the_program_are_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    level = logging.getLogger("lightning.pytorch").level
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    lines = LogLines(logging.getLogger("a program"), every_hundred(103, "image "))
    nn.init.constant_(model.weight, 1.5)
    train(model, lambda _: model.weight.sum(), range(103), steps=103, schedule=schedule(optimizer), callbacks=[lines])
    assert {record.name for record in caplog.records} == {"a program"}
    assert [re.sub(r"\d+ s$", "N s", record.message) for record in caplog.records] == [
        f"image step {step:5d}/103  loss 1.500  N s" for step in (0, 100, 102)
    ]
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not list(tmp_path.iterdir())
    assert logging.getLogger("lightning.pytorch").level == level
