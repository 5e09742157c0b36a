"""XPrompt: importance against explicit gates, least tokens and pieces cut out in a fit, and gone from what is saved."""

from __future__ import annotations

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
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.xprompt import XPrompt
from mmprefix.model import PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.training.best_checkpoint import BestCheckpoint
from mmprefix.training.methods.xprompt import XPromptSchedule
from mmprefix.types import Features, Prefix, all_real
from tiny.captioning_system import quietly
from tiny.decoders import save_decoder
from tiny.fits import fit, prefix_task, text_batch
from tiny.models import OPTIONS

pytestmark = quietly
BATCHES = [text_batch(("a dog barks", "rain falls")), text_batch(("the cat runs", "a bell rings twice"))]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp("gpt2")))


def gradients(decoder: CausalDecoder, embeds: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor]:
    """Mean size of the gradients of explicit gates of tokens (P) and of ``pieces`` (P 16) before ``embeds`` (P E)."""
    sums = torch.zeros(len(embeds)), torch.zeros_like(pieces)
    for batch in BATCHES:
        gamma, zeta = torch.ones(len(embeds), requires_grad=True), pieces.clone().requires_grad_()
        gated = embeds.view(*pieces.shape, -1) * zeta[..., None] * gamma[:, None, None]
        prefix = Prefix(gated.flatten(1).expand(2, -1, -1), torch.ones(2, len(embeds), dtype=torch.bool))
        loss = decoder.loss(decoder.prefill(prefix), batch.prompts, batch.targets)
        for total, gradient in zip(sums, torch.autograd.grad(loss, [gamma, zeta]), strict=True):
            total += gradient.abs() / len(BATCHES)
    return sums


class Record(Callback):
    """Callback that keeps embeddings and masks before each step."""

    def __init__(self, prompt: XPrompt) -> None:
        self.prompt, self.steps = prompt, list[tuple[Tensor, Tensor, Tensor]]()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            self.steps.append((self.prompt.embeds.clone(), self.prompt.tokens.clone(), self.prompt.parts.clone()))


def test_the_least_tokens_then_pieces_are_cut_out_and_the_rest_is_trained_once_more(
    decoder: CausalDecoder, tmp_path: Path
) -> None:
    task = prefix_task(decoder, partial(XPrompt, length=6, pieces=16, std=1.0))
    prompt = cast(XPrompt, task.model.task_prefix)
    record = Record(prompt)
    schedule = XPromptSchedule(tune=0.4, score=0.2, tokens=0.5, pieces=0.25)  # of 10 steps: 4, 2, 2, 2
    fit(task, tmp_path, BATCHES, record, schedule, epochs=5)

    tuned, tokens, parts = record.steps[4]
    assert not torch.equal(tuned, record.steps[0][0])
    assert tokens.all()
    assert parts.all()
    importance, _ = gradients(decoder, tuned, torch.ones(6, 16))
    tokens = record.steps[6][1]
    assert tokens.nonzero()[:, 0].tolist() == sorted(importance.argsort()[3:].tolist())
    assert torch.equal(record.steps[8][0], tuned)  # scoring changes nothing: rewound

    _, importance = gradients(decoder, tuned[tokens], torch.ones(3, 16))
    gone = set(importance.flatten().argsort()[:12].tolist())
    assert set((~prompt.parts[tokens]).flatten().nonzero()[:, 0].tolist()) == gone
    assert prompt.parts[~tokens].all()
    zeros = prompt(Features.empty(1)).embeds.view(48, -1) == 0
    assert set(zeros.all(1).nonzero()[:, 0].tolist()) == gone
    kept = (tokens[:, None] & prompt.parts)[..., None].expand(-1, -1, 2).flatten(1)
    assert not torch.isclose(prompt.embeds, tuned)[kept].any()
    assert torch.equal(prompt.embeds[~kept], tuned[~kept])


def test_what_is_cut_out_is_not_saved(decoder: CausalDecoder, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = PrefixLM({}, decoder, partial(XPrompt, length=4, pieces=8, std=1.0))
    prompt = cast(XPrompt, model.task_prefix)
    prompt.prune_tokens(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5)
    prompt.prune_pieces(torch.arange(32.0).view(4, 8), 0.125)
    Predictor(model, ModelSettings()).save(tmp_path)
    saved = mmprefix.load(tmp_path, device="cpu").model
    expected = prompt.embeds[[0, 3]].detach().clone()
    expected[0, :8] = 0  # pieces 0 and 1 of token 0, of four numbers each
    assert isinstance(saved.task_prefix, Learned)
    assert torch.equal(saved.task_prefix.embeds, expected)
    batch = text_batch()
    assert torch.allclose(saved.text_loss(batch).nll, model.text_loss(batch).nll, atol=1e-4)
    assert saved.generate(batch, OPTIONS) == model.generate(batch, OPTIONS)
    again = XPrompt(prompt.sizes, length=4, pieces=8)
    again.load_state_dict(prompt.state_dict())
    assert torch.equal(again(Features.empty(2)).embeds, prompt(Features.empty(2)).embeds)


def test_one_token_is_always_left() -> None:
    prompt = XPrompt(Sizes(0, 0, 8), length=3, pieces=2)
    for _ in range(4):
        prompt.prune_tokens(torch.tensor([3.0, 1.0, 2.0]), 0.9)
    assert prompt.tokens.tolist() == [True, False, False]
    assert all_real(prompt(Features.empty(2)).embeds).shape == (2, 1)


def test_a_best_state_of_the_whole_prompt_is_forgotten(decoder: CausalDecoder, tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path / "best.ckpt", patience=3)
    best.file.touch()
    best.value, best.waited = 0.1, 2
    fit(prefix_task(decoder, partial(XPrompt, pieces=2)), tmp_path, BATCHES, best, XPromptSchedule(), epochs=2)
    assert (best.value, best.waited) == (None, 0)


def test_a_run_of_two_steps_prunes_and_says_that_nothing_is_trained(
    decoder: CausalDecoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = prefix_task(decoder, partial(XPrompt, length=4, pieces=2))
    fit(task, tmp_path, BATCHES, XPromptSchedule())
    prompt = cast(XPrompt, task.model.task_prefix)
    assert (int(prompt.tokens.sum()), int(prompt.parts[prompt.tokens].sum())) == (2, 2)
    assert "of 2 steps none is left" in caplog.text


def test_options_that_cannot_be_are_refused(decoder: CausalDecoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"XPrompt.pieces 5: give a divisor of the decoder's width, 8"):
        XPrompt(Sizes(0, 0, 8), pieces=5)
    with pytest.raises(InputError, match="no gradient to score by"):
        XPrompt(Sizes(0, 0, 8), pieces=2).gate_gradients()
    with pytest.raises(InputError, match=r"XPromptSchedule.tokens 1: give a share"):
        XPromptSchedule(tokens=1)
    with pytest.raises(InputError, match="leave no step to train the rest"):
        XPromptSchedule(tune=0.8, score=0.1)
    with pytest.raises(InputError, match="the model has no"):
        fit(prefix_task(decoder, Learned), tmp_path, BATCHES, XPromptSchedule())
