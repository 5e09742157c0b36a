"""Prompts that are learned while a model is used: a buffer of them, and those that are surer than the trained one help.

After DynaPrompt: Dynamic Test-Time Prompt Tuning (Xiao et al.), https://arxiv.org/abs/2501.16404, which is for CLIP: a
buffer of 12 prompts, 64 augmented views of a picture, the entropy of the surest tenth of them, one step of AdamW at
5e-3. Here the classes are answers that a decoder scores, a prompt is an addition to the model's prefix, and the caller
gives the views (chosen here).
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

    A prompt of the buffer helps where its entropy is below that of the trained prefix, and the gap between its two
    likeliest answers above; where none does, a new one from nothing does. All that help take a step on the entropy. A
    new prompt enters the buffer, and the one that helped least often leaves where it is full.

    Args:
        model: with a prefix of one kind: embeddings, or keys and values.
        choices: allowed answers.
        buffer: most prompts that are kept.
        surest: share of the views that count, those of the lowest entropy.
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
        self.prompts: list[Tensor] = []
        self.uses: list[int] = []

    def choose(self, views: Batch) -> Tensor:
        """Log-probability (C,) of each choice for the one input of which ``views`` are; the buffer learns from it."""
        prefix = prefix_of(self.model, views)
        start = no_addition(prefix)
        with torch.no_grad():
            entropy, gap = self.measures(self.log_probs(views, prefix))
            helping: list[int] = []
            for number, psi in enumerate(self.prompts):
                own, own_gap = self.measures(self.log_probs(views, moved(prefix, psi)))
                if own < entropy and own_gap > gap:
                    helping.append(number)
        for number in helping:
            self.uses[number] += 1
        if not helping:
            if len(self.prompts) == self.most:
                least = min(range(self.most), key=lambda number: self.uses[number])
                del self.prompts[least], self.uses[least]
            self.prompts.append(start)
            self.uses.append(1)
            helping = [len(self.prompts) - 1]
        answers = [self._learn(number, views, prefix) for number in helping]
        return torch.stack(answers).logsumexp(0).log_softmax(-1)

    def _learn(self, number: int, views: Batch, prefix: Prefix | DeepPrefix) -> Tensor:
        """Step of AdamW on the entropy of prompt ``number`` → its log-probabilities (C,) after it."""
        psi = self.prompts[number].detach().requires_grad_()
        optimizer: Any = torch.optim.AdamW([psi], self.lr)
        with torch.enable_grad():
            entropy, _ = self.measures(self.log_probs(views, moved(prefix, psi)))
        (psi.grad,) = torch.autograd.grad(entropy, [psi])
        optimizer.step()
        self.prompts[number] = psi.detach()
        with torch.no_grad():
            return self.mean(self.log_probs(views, moved(prefix, psi)))

    def log_probs(self, views: Batch, prefix: AnyPrefix) -> Tensor:
        """Log-probability (B C) of each choice for each view, with gradients to the prefix."""
        losses = self.decoder.text_loss(
            self.decoder.prefill(prefix), self.model.prompts(views), [self.choices] * len(views)
        )
        return (-losses.nll).view(len(views), -1).log_softmax(-1)

    def mean(self, log_probs: Tensor) -> Tensor:
        """Log of the mean probability (C,) over the surest views: those of the lowest entropy."""
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        count = max(1, int(self.surest * len(log_probs)))
        surest = log_probs[entropy.topk(count, largest=False).indices]
        return surest.logsumexp(0) - math.log(count)

    def measures(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy of the mean over the surest views, and how far its two likeliest choices are apart."""
        mean = self.mean(log_probs)
        likeliest = mean.exp().topk(2).values
        return -(mean.exp() * mean).sum(), likeliest[0] - likeliest[1]
