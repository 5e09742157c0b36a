"""Prompts that are learned while a model is used: a buffer of them, and those that are surer than the trained one help.

After DynaPrompt: Dynamic Test-Time Prompt Tuning (Xiao et al.), https://arxiv.org/abs/2501.16404, which is for CLIP: a
buffer of 12 prompts, a picture and 63 augmented views of it, one step of AdamW at 5e-3 on the entropy of the surest
tenth. Its code (https://github.com/zzzx1224/DynaPrompt) tells what helps: a prompt that is surer of the views than the
untouched one, and more sensitive to what augmenting changed. Here the classes are answers that a decoder scores, a
prompt is an addition to the model's prefix, and the caller gives the views (chosen here).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.inference.prefixes.addition import moved, no_addition, prefix_of
from mmprefix.model import PrefixLM
from mmprefix.types import AnyPrefix, Batch, DeepPrefix, Prefix


class OnlinePrompts:
    """Classifier of one input at a time by ``choices``, from a batch of its views, with a buffer of prompts.

    The first view is the input itself, the others are changed a little. A prompt of the buffer helps where its mean
    entropy over the views is below that of the trained prefix, and its probability difference above: what its likeliest
    answer has for the first view, less the mean of that for the others. Where none helps, a new one from nothing does.
    All that help take a step on the entropy, and answer for the first view. The buffer is in the order of their last
    use; where it is full, the prompt that helped longest ago leaves for a new one.

    Args:
        model: with a prefix of one kind: embeddings, or keys and values.
        choices: allowed answers.
        buffer: most prompts that are kept.
        surest: share of the views that the entropy of a step is of, those of the lowest entropy.
        lr: rate of AdamW.
    """

    def __init__(
        self, model: PrefixLM, choices: list[str], *, buffer: int = 12, surest: float = 0.1, lr: float = 5e-3
    ) -> None:
        if buffer < 1 or not 0 < surest <= 1:
            raise InputError(f"OnlinePrompts: buffer {buffer} is a number from 1 on, surest {surest} a share up to 1")
        if len(choices) < 2:
            raise InputError(f"OnlinePrompts.choices {choices}: give two or more")
        self.model, self.choices, self.most, self.surest, self.lr = model, choices, buffer, surest, lr
        self.decoder = model.decoder
        self.prompts: list[Tensor] = []  # the one used longest ago first

    def choose(self, views: Batch) -> Tensor:
        """Log-probability (C,) of each choice for the first of ``views`` of one input; the buffer learns from all."""
        prefix = prefix_of(self.model, views)
        with torch.no_grad():
            helping = self._helping(views, prefix)
        kept = [psi for psi in self.prompts if all(psi is not other for other in helping)]
        if not helping:
            helping, kept = [no_addition(prefix).detach()], kept[-(self.most - 1) :] if self.most > 1 else []
        answers, learned = zip(*[self._learn(psi, views, prefix) for psi in helping], strict=True)
        self.prompts = [*kept, *learned]
        return torch.stack(answers).mean(0).log_softmax(-1)

    def _helping(self, views: Batch, prefix: Prefix | DeepPrefix) -> list[Tensor]:
        """Prompts of the buffer that are surer than the trained prefix and more sensitive."""
        entropy, difference = self.measures(self.log_probs(views, prefix))
        helping: list[Tensor] = []
        for psi in self.prompts:
            own, own_difference = self.measures(self.log_probs(views, moved(prefix, psi)))
            if own < entropy and own_difference > difference:
                helping.append(psi)
        return helping

    def _learn(self, psi: Tensor, views: Batch, prefix: Prefix | DeepPrefix) -> tuple[Tensor, Tensor]:
        """Step of AdamW on the entropy of ``psi`` → its log-probabilities (C,) for the first view, and itself."""
        psi = psi.clone().requires_grad_()
        optimizer: Any = torch.optim.AdamW([psi], self.lr)
        with torch.enable_grad():
            entropy = entropy_of(self.mean(self.log_probs(views, moved(prefix, psi))))
        (psi.grad,) = torch.autograd.grad(entropy, [psi])
        optimizer.step()
        psi = psi.detach()
        with torch.no_grad():
            return self.log_probs(views, moved(prefix, psi))[0], psi

    def log_probs(self, views: Batch, prefix: AnyPrefix) -> Tensor:
        """Log-probability (B C) of each choice for each view, with gradients to the prefix."""
        losses = self.decoder.text_loss(
            self.decoder.prefill(prefix), self.model.prompts(views), [self.choices] * len(views)
        )
        return (-losses.nll).view(len(views), -1).log_softmax(-1)

    def mean(self, log_probs: Tensor) -> Tensor:
        """Log of the mean probability (C,) over the surest views: those of the lowest entropy."""
        count = max(1, int(self.surest * len(log_probs)))
        surest = log_probs[entropy_of(log_probs).topk(count, largest=False).indices]
        return surest.logsumexp(0) - math.log(count)

    def measures(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy of the views (B C), and the probability difference between the first and the others."""
        highest = log_probs.amax(-1).exp()
        others = highest[1:].mean() if len(highest) > 1 else highest[0]
        return entropy_of(log_probs).mean(), highest[0] - others


def entropy_of(log_probs: Tensor) -> Tensor:
    """Entropy (...) in nats of distributions (... C)."""
    return -(log_probs.exp() * log_probs).sum(-1)
