"""LAE: the offline expert is the exponential mean step by step, both are saved, and both are asked together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

import mmprefix
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.generation.several import Strongest
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.prefixes import join_models
from mmprefix.inference.prefixes.experts import experts_of
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.online_offline import OnlineOffline
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.user_prefix import UserPrefix
from mmprefix.model import PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.training.methods.lae import FollowOnline
from mmprefix.types import Features
from tiny.captioning_system import CaptioningSystem, quietly
from tiny.fits import fit, prefix_task, text_batch

pytestmark = quietly
build = partial(OnlineOffline, mapper=partial(Learned, length=3, std=1.0), decay=0.8)
FIRST = text_batch(("the red hill", "a hill 0 is red."), prompts=["", ""])
SECOND = text_batch(("a low bell rings", "0 bells, low."), prompts=["", ""])


@pytest.fixture(scope="module")
def decoder(tiny: CaptioningSystem) -> CausalDecoder:
    return CausalDecoder(tiny.path("decoder"))


class Record(Callback):
    """Callback that keeps the online embeddings after each step."""

    def __init__(self, part: OnlineOffline) -> None:
        self.part, self.steps, self.offline = part, list[Tensor](), list[Tensor]()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(cast(Learned, self.part.mapper).embeds.detach().clone())
        self.offline.append(offline(self.part))


def offline(part: OnlineOffline) -> Tensor:
    return cast(Learned, part.offline_expert()).embeds.detach()


@pytest.fixture(scope="module")
def first(decoder: CausalDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved model of the first task."""
    folder = tmp_path_factory.mktemp("first")
    task = prefix_task(decoder, build)
    part = cast(OnlineOffline, task.model.task_prefix)
    follow = FollowOnline()
    record = Record(part)
    fit(task, folder, [FIRST], follow, record, epochs=8)
    assert all(torch.equal(*pair) for pair in zip(record.offline, record.steps, strict=True))
    assert follow.state_dict() == {"begun": True}
    assert int(part.tasks) == 1
    Predictor(task.model, ModelSettings()).save(folder / "model")
    return folder / "model"


def test_the_offline_expert_is_the_mean_of_the_second_tasks_steps(
    decoder: CausalDecoder, first: Path, tmp_path: Path
) -> None:
    task = prefix_task(decoder, build, start_from=str(first))
    part = cast(OnlineOffline, task.model.task_prefix)
    saved = cast(OnlineOffline, mmprefix.load(first, device="cpu").model.task_prefix)
    record = Record(part)
    fit(task, tmp_path, [SECOND], record, FollowOnline(), epochs=8)
    mean = offline(saved).clone()
    for step in record.steps:
        mean = 0.8 * mean + 0.2 * step
    assert torch.allclose(offline(part), mean, atol=1e-6)
    assert not torch.allclose(offline(part), record.steps[-1], atol=1e-3)
    assert int(part.tasks) == 2

    Predictor(task.model, ModelSettings()).save(tmp_path / "model")
    both = experts_of(mmprefix.load(tmp_path / "model", device="cpu"))
    with torch.no_grad():  # the offline expert knows more of the first task, the online one more of the second
        losses = [[float(one.model.text_loss(batch).mean()) for batch in (FIRST, SECOND)] for one in both]
    assert losses[1][0] < losses[0][0]
    assert losses[0][1] < losses[1][1]


def test_both_are_asked_together(decoder: CausalDecoder, tmp_path: Path) -> None:
    """The first token is the one that either expert holds likeliest."""
    torch.manual_seed(4)
    model = PrefixLM({}, decoder, build)
    part = cast(OnlineOffline, model.task_prefix)
    part.mapper.load_state_dict({"embeds": torch.randn(3, decoder.width)})
    both = experts_of(Predictor(model))
    joined = join_models(both, Strongest())
    chances = []
    for one in both:
        state = decoder.append(one.model.prefill(text_batch(("",), prompts=["a"])), ["a"])
        chances.append(decoder.logits(decoder.language_model.last_hidden(state)).softmax(-1))
    token = int(torch.stack(chances).amax(0).argmax())
    (text,) = joined([{}], prompt="a", max_new_tokens=1)
    assert text == decoder.codec.decode([token])
    assert both[0].model.task_prefix is part.mapper


def test_a_later_task_may_begin_with_the_online_expert_frozen(decoder: CausalDecoder, tmp_path: Path) -> None:
    task = prefix_task(decoder, build)
    part = cast(OnlineOffline, task.model.task_prefix)
    part.tasks += 1
    before, record = cast(Learned, part.mapper).embeds.detach().clone(), Record(part)
    fit(task, tmp_path, [FIRST, SECOND], record, FollowOnline(frozen=0.6), epochs=5)
    assert all(torch.equal(step, before) for step in record.steps[:6])  # 3 of 5 epochs, of two steps each
    assert not torch.equal(record.steps[6], before)


def test_both_experts_are_merged() -> None:
    torch.manual_seed(2)
    part = OnlineOffline(Sizes(0, 0, 8, 2, 2, 4), mapper=partial(Deep, mapper=partial(Learned, length=3)))
    with torch.no_grad():
        for parameter in part.mapper.parameters():
            parameter.add_(torch.randn(parameter.shape))
    part.follow(0.5)
    merged = cast(OnlineOffline, part.merged())
    assert isinstance(merged.mapper, DeepTable)
    nothing = Features.empty(1)
    for own, other in ((part, merged), (part.offline_expert(), merged.offline_expert())):
        assert torch.allclose(own(nothing).keys, other(nothing).keys, atol=1e-6)
    assert not torch.allclose(part(nothing).keys, part.offline_expert()(nothing).keys, atol=1e-2)
    assert merged.merged() is merged


def test_what_cannot_be_is_refused(decoder: CausalDecoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"OnlineOffline.decay 1: give a number"):
        OnlineOffline(Sizes(0, 0, 8), mapper=Learned, decay=1)
    with pytest.raises(InputError, match=r"FollowOnline.frozen 1.0: give a share"):
        FollowOnline(frozen=1.0)
    with pytest.raises(InputError, match=r"frozen 0.5: is a share of the epochs, .* give trainer.max_epochs"):
        fit(prefix_task(decoder, build), tmp_path, [FIRST], FollowOnline(0.5), epochs=-1, max_steps=2)
    slow = partial(OnlineOffline, mapper=partial(Learned, length=2))
    for precision, kind in (("bf16-true", "bfloat16"), ("16-true", "float16")):
        with pytest.raises(InputError, match=rf"decay 0.9999: numbers in {kind} cannot follow"):
            fit(prefix_task(decoder, slow), tmp_path, [FIRST], FollowOnline(), precision=precision)
    with pytest.raises(InputError, match="FollowOnline: the model has no"):
        fit(prefix_task(decoder, Learned), tmp_path, [FIRST], FollowOnline())
    with pytest.raises(InputError, match="experts_of: the model has no"):
        experts_of(Predictor(PrefixLM({}, decoder, Learned)))


@pytest.mark.parametrize("build", [UserPrefix, partial(Parallel, mappers=[UserPrefix, Learned])])
def test_rows_of_users_are_refused_for_the_offline_expert_would_keep_who_left(build: Callable[[Sizes], Mapper]) -> None:
    with pytest.raises(InputError, match=r"OnlineOffline: UserPrefix has rows of users, who join and leave"):
        OnlineOffline(Sizes(0, 8, 8), mapper=build)
