"""Adversarial prefix tuning: the prefix is trained on the worst small change of what stands behind it.

On Robust Prefix-Tuning for Text Classification (Yang and Liu), https://arxiv.org/abs/2203.10378, whose code
(https://github.com/minicheshire/Robust-Prefix-Tuning) trains prefixes so, beside the defence at test time: projected
gradient ascent (Madry et al., https://arxiv.org/abs/1706.06083) on the embeddings of the content, ten steps of a
quarter of the radius within a ball around each word or around the whole text, and then the loss there alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError, require_one_of
from mmprefix.kv_cache.state import State
from mmprefix.model import PrefixLM
from mmprefix.training.objective import Objective
from mmprefix.types import Batch


class AdversarialTexts(Objective):
    """Likelihood of the captions behind prompts whose embeddings are changed for the worst.

    Args:
        radius: longest change of a token's embedding, or of all of a prompt together, in units of the mean length of
            the decoder's embeddings (chosen here; published: 5 in their own units, for GPT-2 medium).
        ball: "word" or "text", what the radius is of.
        steps: of the ascent. Published: 10; each is a pass forward and back.
    """

    def __init__(self, *, radius: float = 0.3, ball: Literal["word", "text"] = "word", steps: int = 3) -> None:
        require_one_of("AdversarialTexts.ball", ball, ("word", "text"))
        if not 0 < radius < float("inf") or steps < 1:
            raise InputError(f"AdversarialTexts: radius {radius}, steps {steps}; give numbers above 0")
        self.radius, self.dims, self.steps = radius, (2,) if ball == "word" else (1, 2), steps
        self.unit: float | None = None  # mean length of the decoder's embeddings

    def loss(self, model: PrefixLM, batch: Batch, smoothing: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss at the worst change; ``change``: the mean length of a token's change, in units of the radius."""
        change = self.worst(model, batch)
        lengths = change.norm(dim=2)
        size = lengths.sum() / (lengths > 0).sum().clamp(min=1) / self._radius(model)
        return _loss_at(model, batch, model.prefill(batch), change, smoothing=smoothing), {"change": size}

    def worst(self, model: PrefixLM, batch: Batch) -> Tensor:
        """Change (B N E) of the embeddings of the prompts' tokens that raises the loss most, as far as steps find it.

        Raises InputError for rows without a prompt, and for a decoder that is not made of tokens.
        """
        radius = self._radius(model)
        with torch.no_grad():
            state = model.prefill(batch)
        real = _prompt_tokens(model, batch, state)[..., None]
        noise = torch.randn(*real.shape[:2], model.decoder.width, device=real.device)
        change = self._within(noise * real, 1e-3 * radius)
        for _ in range(self.steps):
            change.requires_grad_()
            with torch.enable_grad():
                loss = _loss_at(model, batch, state, change)
            (slope,) = torch.autograd.grad(loss, [change])
            slope = slope * real / slope.norm(dim=self.dims, keepdim=True).clamp(min=1e-12)
            change = self._within(change.detach() + radius / 4 * slope, radius)
        return change

    def _within(self, change: Tensor, radius: float) -> Tensor:
        """Change (B N E) with each token, or each prompt, cut to the radius."""
        lengths = change.norm(dim=self.dims, keepdim=True).clamp(min=1e-12)
        return change * (radius / lengths).clamp(max=1)

    def _radius(self, model: PrefixLM) -> float:
        decoder = _tokens_of(model)
        if self.unit is None:
            with torch.no_grad():
                vectors = decoder.token_vectors(list(range(len(decoder.tokenizer))))
            self.unit = float(vectors.float().norm(dim=1).mean())
        return self.radius * self.unit


def _tokens_of(model: PrefixLM) -> ComposedDecoder:
    if not isinstance(model.decoder, ComposedDecoder):
        raise InputError("AdversarialTexts: changes embeddings of tokens, and this decoder has none; leave it out")
    return model.decoder


def _prompt_tokens(model: PrefixLM, batch: Batch, state: State) -> Tensor:
    """Mask (B N) of the tokens of the prompts behind ``state``."""
    codec, first = _tokens_of(model).codec, state.last_hidden is None
    counts = [len(codec.prompt_ids(prompt, first)) if prompt else 0 for prompt in model.prompts(batch)]
    if not all(counts):
        raise InputError("AdversarialTexts: a row has no prompt to change; give context, or a prompt")
    return torch.arange(max(counts), device=state.mask.device) < torch.tensor(counts, device=state.mask.device)[:, None]


def _loss_at(model: PrefixLM, batch: Batch, state: State, change: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean loss of the targets behind prompts with the ``change`` of their embeddings, beside the prefix's own."""
    own, before = state.text_updates, state.before_text
    if own is not None:
        longest = max(own.shape[1], change.shape[1])
        own, change = (pad(part, (0, 0, 0, longest - part.shape[1])) for part in (own, change))
        change = own + change
    before = state.mask.sum(1, keepdim=True) if before is None else before
    changed = replace(state, text_updates=change, before_text=before)
    prompts, questions = model.prompts(batch), model.questions(batch)
    return model.decoder.text_loss(changed, prompts, batch.targets, questions, smoothing=smoothing).mean()
