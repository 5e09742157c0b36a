"""PANDA: the loss written out, a teacher that stays, a student that a strong teacher holds back, a recipe that runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.training.methods.panda import Panda, target_logits
from mmprefix.training.self_critical import SelfCritical
from mmprefix.types import Batch
from tiny.captioning_system import CaptioningSystem, quietly, run
from tiny.decoders import save_decoder
from tiny.fits import fit, prefix_task, text_batch

pytestmark = quietly
build = partial(DeepTable, length=3, std=1.0)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module")
def source(decoder: CausalDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved model of the source task."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("source")
    Predictor(PrefixLM({}, decoder, build), ModelSettings()).save(folder)
    return folder


def several() -> Batch:
    return text_batch(("a dog", "rain", "the cat"), targets=[["a dog", "it barks"], [], ["the cat runs"]])


def by_hand(model: PrefixLM, prompt: str, target: str) -> tuple[Tensor, Tensor]:
    """Logits (N V) at one target's tokens, by Transformers alone behind the model's prefix, and the tokens."""
    decoder = cast(Any, model.decoder)
    before = decoder.codec.prompt_ids(prompt, False)
    ids = decoder.codec.target_ids(prompt, target)
    state = model.prefill(text_batch((target,)))
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(state.cache):
        cache.update(keys, values, layer)
    out = decoder.lm(torch.tensor([[*before, *ids[:-1]]]), past_key_values=cache)
    return out.logits[0, len(before) - 1 :], torch.tensor(ids)


def test_logits_and_tokens_of_all_targets(decoder: CausalDecoder) -> None:
    torch.manual_seed(0)
    model, batch = PrefixLM({}, decoder, build), several()
    with torch.no_grad():
        logits, ids = target_logits(model, batch)
        expected = [by_hand(model, "0:", t) for t in ("a dog", "it barks")] + [by_hand(model, "2:", "the cat runs")]
        assert torch.equal(ids, torch.cat([tokens for _, tokens in expected]))
        assert torch.allclose(logits, torch.cat([own for own, _ in expected]), atol=1e-3)
        likelihood = -logits.log_softmax(-1)[torch.arange(len(ids)), ids].mean()
        assert torch.allclose(likelihood, model.text_loss(batch).mean(), atol=1e-4)


def test_the_loss_is_the_papers(decoder: CausalDecoder, source: Path) -> None:
    """CE + 0.1 * beta * MSE / batch size."""
    torch.manual_seed(0)
    model, batch = PrefixLM({}, decoder, build), several()
    objective = Panda(teacher=str(source), beta=3.0)
    objective.begin(model)
    teacher = cast(PrefixLM, objective.teacher)
    loss, figures = objective.loss(model, batch, 0.0)
    own, other = (target_logits(one, batch)[0].detach() for one in (model, teacher))
    distance = ((own - other) ** 2).sum() / own.numel()
    assert figures["distance"] == pytest.approx(float(distance), rel=1e-4)
    expected = float(model.text_loss(batch).mean().detach()) + 0.1 * 3.0 * float(distance) / 3
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert not any(p.requires_grad for p in cast(DeepTable, teacher.task_prefix).parameters())
    assert cast(DeepTable, model.task_prefix).table.requires_grad


def test_a_strong_teacher_holds_the_student_back(decoder: CausalDecoder, source: Path, tmp_path: Path) -> None:
    moved: dict[float, tuple[float, float]] = {}
    for beta in (0.0, 100.0):
        objective = Panda(teacher=str(source), beta=beta)
        task = prefix_task(decoder, build, start_from=str(source), objective=objective)
        fit(task, tmp_path, [text_batch()], epochs=12)
        teacher = cast(PrefixLM, objective.teacher)
        with torch.no_grad():
            own, other = (target_logits(one, text_batch())[0] for one in (task.model, teacher))
            moved[beta] = float((own - other).square().mean()), float(task.model.text_loss(text_batch()).mean())
            before = float(teacher.text_loss(text_batch()).mean())
        assert moved[beta][1] < before
    assert moved[100.0][0] < 0.5 * moved[0.0][0]  # nearer to the teacher
    assert moved[0.0][1] < moved[100.0][1]  # at the cost of the captions


def test_a_recipe_runs(tiny: CaptioningSystem, tmp_path: Path) -> None:
    config = tiny.config(())
    config["model"]["prefix"] = {"class_path": "mmprefix.mappers.p_tuning_v2.DeepTable", "init_args": {"length": 2}}
    assert run("fit", tiny.recipe(config, tmp_path / "one"), save_to=tmp_path / "source", trainer__max_epochs=1) == 0
    source = str(tmp_path / "source")
    panda = "mmprefix.training.methods.panda.Panda"
    config["model"] |= {"start_from": source, "objective": {"class_path": panda, "init_args": {"teacher": source}}}
    assert run("fit", tiny.recipe(config, tmp_path / "two"), save_to=tmp_path / "model", trainer__max_epochs=1) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_what_cannot_be_is_refused(decoder: CausalDecoder, source: Path) -> None:
    with pytest.raises(InputError, match=r"Panda.beta -1: give a number from 0 on"):
        Panda(teacher="x", beta=-1)
    with pytest.raises(InputError, match=r"takes the place of model.self_critical"):
        prefix_task(decoder, build, objective=Panda(teacher=str(source)), self_critical=SelfCritical())
    model, objective = PrefixLM({}, decoder, build), Panda(teacher=str(source))
    with pytest.raises(InputError, match="has no teacher yet"):
        objective.loss(model, several(), 0.0)
    objective.begin(model)
    with pytest.raises(InputError, match="and no questions"):
        objective.loss(model, text_batch(("a",), questions=[["why?"]]), 0.0)
