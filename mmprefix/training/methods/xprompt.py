"""Schedule of XPrompt in one fit: tune, score and cut out tokens, score and cut out pieces, train the rest once more.

XPrompt: Exploring the Extreme of Prompt Tuning (Ma et al. 2022), https://arxiv.org/abs/2210.04457. The steps of
scoring change nothing, so that the last part begins at the tuned values (the paper's rewinding).
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from mmprefix.errors import InputError
from mmprefix.mappers.xprompt import XPrompt
from mmprefix.training.best_checkpoint import BestCheckpoint

log = logging.getLogger(__name__)


class XPromptSchedule(Callback):
    """Callback that cuts tokens, then pieces, out of every ``XPrompt`` of a model while it is trained.

    A best state of a validation before the last cut is forgotten, so that the saved model is one of what is left.
    Numbers other than the prompt's are trained in the steps of scoring too, if there are any; use it on a prompt alone.
    A learning rate that falls would leave none for the last part: use ``model.schedule: constant``.

    Args:
        tune: share of all steps before anything is cut out.
        score: share of all steps in which tokens are scored, and again for pieces; at least one step each.
        tokens: share of the tokens that is cut out (the paper's are between 0.1 and 0.9).
        pieces: share of the pieces of the tokens left that is cut out (all of them compared with each other: chosen
            here).
    """

    def __init__(self, tune: float = 0.5, score: float = 0.05, tokens: float = 0.5, pieces: float = 0.5) -> None:
        for name, value in (("tune", tune), ("score", score), ("tokens", tokens), ("pieces", pieces)):
            if not 0 <= value < 1:
                raise InputError(f"XPromptSchedule.{name} {value}: give a share from 0 on, below 1")
        if tune + 2 * score >= 1:
            raise InputError(f"XPromptSchedule: tune {tune} and twice score {score} leave no step to train the rest")
        self.tune, self.score, self.tokens, self.pieces = tune, score, tokens, pieces
        self.sums: list[Tensor] = []  # of each XPrompt's scores in this part
        self._ends = (0, 0, 0)  # first step of: scoring of tokens, scoring of pieces, training of the rest

    def state_dict(self) -> dict[str, Any]:
        """Scores of a run that stops within a part of scoring."""
        return {"sums": self.sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with these scores."""
        self.sums = state_dict["sums"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the parts in steps; InputError where the model has no ``XPrompt`` or the run no end."""
        if not _prompts(pl_module):
            raise InputError("XPromptSchedule: the model has no mmprefix.mappers.xprompt.XPrompt; take it as prefix")
        total = trainer.estimated_stepping_batches
        if total == float("inf"):
            raise InputError("XPromptSchedule: needs a training with an end; give trainer.max_epochs or max_steps")
        steps = max(1, int(self.score * total))
        first = max(0, min(int(self.tune * total), int(total) - 2 * steps - 1))
        if first + 2 * steps >= total:
            log.warning("XPrompt: of %d steps none is left to train what remains; give the run more", int(total))
        self._ends = (first, first + steps, first + 2 * steps)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add up the scores of this step and keep the optimizer from the prompts; prune after the last one."""
        step, (tokens, pieces, rest) = trainer.global_step, self._ends
        if step == rest:
            optimizer.state.clear()  # moments of the whole prompt
        if not tokens <= step < rest:
            return
        prompts, which = _prompts(pl_module), int(step >= pieces)
        scores = [prompt.gate_gradients()[which] for prompt in prompts]
        if step in (tokens, pieces):
            self.sums = [torch.zeros_like(score) for score in scores]
        self.sums = [total.to(score.device) + score for total, score in zip(self.sums, scores, strict=True)]
        for prompt in prompts:
            prompt.embeds.grad = None
        if step + 1 in (pieces, rest):
            self._prune(prompts, which)
            for callback in cast(Any, trainer).callbacks:
                if isinstance(callback, BestCheckpoint):  # the best state so far is one of the whole prompt
                    callback.value, callback.waited = None, 0

    def _prune(self, prompts: list[XPrompt], which: int) -> None:
        for prompt, total in zip(prompts, self.sums, strict=True):
            if which:
                prompt.prune_pieces(total, self.pieces)
            else:
                prompt.prune_tokens(total, self.tokens)
            left = prompt.parts[prompt.tokens]
            log.info("XPrompt: %d of %d tokens left, %d pieces", len(left), len(prompt.tokens), int(left.sum()))


def _prompts(module: LightningModule) -> list[XPrompt]:
    return [part for part in module.modules() if isinstance(part, XPrompt)]
