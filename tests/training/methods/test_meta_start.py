"""Meta-learned starts: Reptile's and MAML's gradients by hand, fewer steps on new users, batches of one user."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mmprefix.data.model_inputs import ModelInputs
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.mappers.learned import Learned
from mmprefix.model import PrefixLM
from mmprefix.training.methods.meta_start import MetaStart
from mmprefix.training.methods.task_batches import TaskBatches, rows_of
from mmprefix.types import Batch, Features, Media
from tiny.captioning_system import COLOURS, CaptioningSystem, quietly
from tiny.decoders import save_decoder
from tiny.fits import fit, prefix_task, text_batch

pytestmark = quietly
THINGS = ("dog", "cat", "bell")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp("gpt2")))


def users_batch(user: int) -> Batch:
    """Four texts of one user, who says all in one manner, and each user about another thing."""
    thing = THINGS[user]
    texts = [f"the {thing} {verb} over a hill; a {thing}" for verb in ("runs", "falls", "rings", "barks")]
    return text_batch(texts, users=[str(user)] * 4)


def steps(model: PrefixLM, batch: Batch, count: int, rate: float) -> Tensor:
    """Embeddings after ``count`` steps of gradient descent from where ``model`` is, which is left there."""
    prompt = cast(Learned, model.task_prefix).embeds
    start = prompt.detach().clone()
    for _ in range(count):
        (gradient,) = torch.autograd.grad(model.text_loss(batch).mean(), [prompt])
        prompt.data -= rate * gradient
    phi = prompt.detach().clone()
    prompt.data.copy_(start)
    return phi


def test_reptiles_gradient_is_the_mean_way_of_the_tasks(decoder: CausalDecoder) -> None:
    torch.manual_seed(0)
    model = PrefixLM({}, decoder, partial(Learned, length=3, std=0.5))
    prompt = cast(Learned, model.task_prefix).embeds
    before = prompt.detach().clone()
    one, two = users_batch(0), users_batch(1)
    both = text_batch([t[0] for t in one.targets + two.targets], users=["a"] * 4 + ["b"] * 4)
    ways = [before - steps(model, rows_of(both, rows), 3, 0.2) for rows in (range(4), range(4, 8))]
    loss, figures = MetaStart(inner_steps=3, inner_rate=0.2).loss(model, both, 0.0)
    assert float(loss.detach()) == pytest.approx(
        sum(float(model.text_loss(rows_of(both, rows)).mean().detach()) / 2 for rows in (range(4), range(4, 8))),
        rel=1e-5,
    )
    assert figures["adapted"] < loss
    loss.backward()
    assert torch.equal(prompt, before)
    assert prompt.grad is not None
    assert torch.allclose(prompt.grad, (ways[0] + ways[1]) / 2 / 0.2, atol=1e-5)


def test_first_order_mamls_gradient_is_that_of_the_other_rows_at_phi(decoder: CausalDecoder) -> None:
    torch.manual_seed(0)
    model, batch = PrefixLM({}, decoder, partial(Learned, length=3, std=0.5)), users_batch(2)
    prompt = cast(Learned, model.task_prefix).embeds
    before = prompt.detach().clone()
    prompt.data.copy_(steps(model, rows_of(batch, [0, 1]), 2, 0.2))
    (expected,) = torch.autograd.grad(model.text_loss(rows_of(batch, [2, 3])).mean(), [prompt])
    prompt.data.copy_(before)
    loss, _ = MetaStart(method="fomaml", inner_steps=2, inner_rate=0.2).loss(model, batch, 0.0)
    loss.backward()
    assert prompt.grad is not None
    assert torch.allclose(prompt.grad, expected, atol=1e-5)


@pytest.mark.parametrize("by", ["user", "target"])
def test_first_order_maml_is_the_mean_of_tasks_of_any_size(by: Any, decoder: CausalDecoder) -> None:
    torch.manual_seed(0)
    model = PrefixLM({}, decoder, partial(Learned, length=3, std=0.5))
    prompt = cast(Learned, model.task_prefix).embeds
    before, sizes = prompt.detach().clone(), {"a dog": 4, "a bell rings": 3, "the hill": 1}
    names = ["a dog", "a bell rings", "a dog", "a bell rings", "the hill", "a dog", "a bell rings", "a dog"]  # mixed
    batch = text_batch(names, users=names if by == "user" else [""] * 8, prompts=[f"{n} cats" for n in range(8)])
    gradients: list[Tensor] = []
    for name, size in sizes.items():
        own = [row for row, other in enumerate(names) if other == name]
        learned, looked_at = (own[: size // 2], own[size // 2 :]) if size > 1 else (own, own)
        prompt.data.copy_(steps(model, rows_of(batch, learned), 2, 0.2))
        gradients += torch.autograd.grad(model.text_loss(rows_of(batch, looked_at)).mean(), [prompt])
        prompt.data.copy_(before)
    loss, _ = MetaStart(method="fomaml", by=by, inner_steps=2, inner_rate=0.2).loss(model, batch, 0.0)
    loss.backward()
    assert prompt.grad is not None
    assert torch.allclose(prompt.grad, torch.stack(gradients).mean(0), atol=1e-5)
    assert (gradients[0] - gradients[1]).abs().max() > 0.01


def colour_batch(colour: int) -> Batch:
    """Texts that the tiny decoder knows, of a user who writes of one colour only."""
    word = list(COLOURS)[colour]
    texts = [f"the {word} hill", f"a hill {colour} is {word}."] * 2
    return text_batch(texts, prompts=[""] * 4, users=[word] * 4)


def steps_to(model: PrefixLM, start: Tensor, batch: Batch, goal: float, most: int = 20) -> int:
    """Steps of gradient descent at 0.05 from ``start`` until the loss is below ``goal``, at ``most``."""
    prompt = cast(Learned, model.task_prefix).embeds
    prompt.data.copy_(start)
    for step in range(most):
        loss = model.text_loss(batch).mean()
        if loss.item() < goal:
            return step
        (gradient,) = torch.autograd.grad(loss, [prompt])
        prompt.data -= 0.05 * gradient
    return most


@pytest.mark.parametrize("method", ["reptile", "fomaml"])
def test_a_learned_start_adapts_to_a_new_user_in_fewer_steps(
    method: Any, tiny: CaptioningSystem, tmp_path: Path
) -> None:
    decoder = CausalDecoder(tiny.path("decoder"))
    objective = MetaStart(method=method, inner_steps=3, inner_rate=0.05)
    task = prefix_task(decoder, partial(Learned, length=4, std=0.3), rate=0.03, objective=objective)
    prompt = cast(Learned, task.model.task_prefix).embeds
    random = prompt.detach().clone()
    fit(task, tmp_path, [colour_batch(colour) for colour in (0, 1, 2)], epochs=6)
    learned, new = prompt.detach().clone(), colour_batch(3)
    fewer, more = (steps_to(task.model, start, new, 0.8) for start in (learned, random))
    assert fewer < more
    assert 4 <= more < 20  # a random start gets there too


def test_batches_of_one_user(tmp_path: Path) -> None:
    rows = [{"id": f"{u}{n}", "captions": [f"text {n}"], "user": f"u{u}", "split": "train"}
            for n in range(5) for u in range(3)]  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TaskBatches(root=str(tmp_path), batch_size=4)
    data.inputs = ModelInputs({}, {}, False, captions_alone=True)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sorted(len(batch) for batch in batches) == [1, 1, 1, 4, 4, 4]
    assert all(len(set(batch.users)) == 1 for batch in batches)
    assert sorted(name for batch in batches for name in batch.ids) == sorted(row["id"] for row in rows)


def test_rows_of_a_batch_keep_their_inputs() -> None:
    media = Media(torch.arange(12.0).view(3, 4), torch.tensor([4, 3, 2]))
    features = Features(torch.randn(3, 2, 5), torch.ones(3, 2, dtype=torch.bool), torch.randn(3, 6))
    batch = text_batch(
        ("a", "b", "c"), inputs={"audio": media, "image": features}, absent={"audio": torch.tensor([True, False, True])}
    )
    part = rows_of(batch, [2, 0])
    assert part.ids == ["2", "0"]
    assert part.targets == [["c"], ["a"]]
    audio, image = cast(Media, part.inputs["audio"]), cast(Features, part.inputs["image"])
    assert torch.equal(audio.values, media.values[[2, 0]])
    assert torch.equal(audio.lengths, torch.tensor([2, 4]))
    assert torch.equal(image.pooled, features.pooled[[2, 0]])
    assert part.absent["audio"].tolist() == [True, True]


def test_what_cannot_be_is_refused(decoder: CausalDecoder) -> None:
    with pytest.raises(InputError, match="give numbers above 0"):
        MetaStart(inner_steps=0)
    with pytest.raises(InputError, match=r"MetaStart.method"):
        MetaStart(method=cast(Any, "maml"))
    model = PrefixLM({}, decoder, Learned)
    with pytest.raises(InputError, match=r"MetaStart.by user: rows of this batch have none"):
        MetaStart().loss(model, text_batch(), 0.0)
