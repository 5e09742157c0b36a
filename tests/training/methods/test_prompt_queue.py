"""Prompt queue: its formula, who leaves, three tasks in a row through saved models, and one table at the end."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import mmprefix
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.prompt_queue import PromptQueue, least_explaining
from mmprefix.saved_model import ModelSettings
from mmprefix.training.methods.prompt_queue import NextTask
from mmprefix.types import Features
from tiny.captioning_system import quietly
from tiny.decoders import save_decoder
from tiny.fits import fit, prefix_task, text_batch

pytestmark = quietly
SIZES = Sizes(0, 0, 8)
build = partial(PromptQueue, length=2, shared=1, capacity=2, std=1.0)
TASKS = [text_batch((text,), prompts=[""]) for text in ("a dog barks", "rain falls", "the cat runs", "a bell rings")]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp("gpt2")))


def test_the_formula() -> None:
    """[shared; past * (1 + A B); own]."""
    torch.manual_seed(0)
    mapper = PromptQueue(SIZES, length=3, shared=2, capacity=4, rank=2, std=1.0)
    own = [mapper.own.detach().clone()]
    assert mapper(Features.empty(1)).embeds.shape == (1, 2 + 3, 8)
    assert mapper.next_task() is None
    own.append(mapper.own.detach().clone())
    assert mapper.next_task() is None
    own.append(mapper.own.detach().clone())
    shared = mapper.shared.detach()
    plain = mapper(Features.empty(2)).embeds
    assert torch.equal(plain, torch.cat([shared, *own]).expand(2, -1, -1))
    mapper.left.data.normal_()
    weights = 1 + torch.einsum("pr,re->pe", mapper.left, mapper.right)
    expected = torch.cat([shared, own[0] * weights[:3], own[1] * weights[3:6], own[2]])
    assert torch.allclose(mapper(Features.empty(1)).embeds[0], expected, atol=1e-6)


def test_the_prompt_that_explains_least_leaves() -> None:
    """The middle one of five points on a line leaves; a component of little variance does not count."""
    line = torch.tensor([[-4.0, 0.1, 0.0], [-2.0, -0.1, 0.0], [0.1, 0.5, 0.0], [2.0, -0.2, 0.0], [4.0, -0.3, 0.0]])
    assert least_explaining(line, 0.9) == 2
    assert least_explaining(line[[0, 4, 2, 1, 3]], 0.9) == 2
    apart = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.2, 2.0], [-0.2, -2.0], [0.9, 0.0]])
    assert least_explaining(apart, 1.0) == 4  # both components count
    assert least_explaining(apart, 0.5) in (2, 3)  # the first alone
    assert least_explaining(torch.ones(3, 4), 0.9) in range(3)


def test_tasks_in_a_row_through_saved_models(decoder: CausalDecoder, tmp_path: Path) -> None:
    before: Path | None = None
    prompts: list[torch.Tensor] = []
    for number, batch in enumerate(TASKS):
        task = prefix_task(decoder, build, start_from=None if before is None else str(before))
        fit(task, tmp_path, [batch], *([] if before is None else [NextTask()]), epochs=6)
        queue = cast(PromptQueue, task.model.task_prefix)
        assert int(queue.count) == min(number, 2)
        if number < 3:
            assert torch.equal(queue.past[:number], torch.stack(prompts) if prompts else queue.past[:0])
        else:  # one of the three is gone, the order stays
            gone = least_explaining(torch.stack(prompts).flatten(1), 0.9)
            assert torch.equal(queue.past, torch.stack([p for n, p in enumerate(prompts) if n != gone]))
        prompts.append(queue.own.detach().clone())
        before = tmp_path / f"task{number}"
        Predictor(task.model, ModelSettings()).save(before)
        again = mmprefix.load(before, device="cpu").model
        with torch.no_grad():
            own = float(task.model.text_loss(batch).mean())
            assert float(again.text_loss(batch).mean()) == pytest.approx(own, abs=1e-4)


def test_one_table_where_the_queue_is_not_kept() -> None:
    torch.manual_seed(1)
    mapper = build(SIZES, keep=False)
    mapper.next_task()
    table = mapper.merged()
    assert isinstance(table, Learned)
    assert torch.equal(table.embeds, mapper(Features.empty(1)).embeds[0])
    kept = build(SIZES)
    assert kept.merged() is kept


def test_a_run_that_is_resumed_does_not_begin_the_task_again(decoder: CausalDecoder, tmp_path: Path) -> None:
    callback = NextTask()
    callback.load_state_dict({"done": True})
    task = prefix_task(decoder, build)
    fit(task, tmp_path, TASKS[:1], callback)
    assert int(cast(PromptQueue, task.model.task_prefix).count) == 0
    assert callback.state_dict() == {"done": True}


def test_what_cannot_be_is_refused(decoder: CausalDecoder, tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [({"capacity": 0}, "capacity 0: give"), ({"rank": 0}, "rank 0: give")]
    for options, message in bad:
        with pytest.raises(InputError, match=message):
            PromptQueue(SIZES, **options)
    with pytest.raises(InputError, match="NextTask: the model has no"):
        fit(prefix_task(decoder, Learned), tmp_path, TASKS[:1], NextTask())
