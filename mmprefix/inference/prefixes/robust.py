"""Robust prefix tuning: at each batch the prefix is moved so that hidden states lie where those of right answers lay.

On Robust Prefix-Tuning for Text Classification (Yang and Liu), https://arxiv.org/abs/2203.10378. A defence against
inputs that were changed to mislead: nothing is learned of the attack, and the trained prefix stays as it is.

guard = RobustPrefix(model, ["good", "bad"])
guard.fit(training_batches)
log_probs = guard.choose(batch)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError, require_one_of
from mmprefix.inference.prefixes.addition import moved, no_addition, prefix_of
from mmprefix.inference.prefixes.layer_states import read_last
from mmprefix.model import PrefixLM
from mmprefix.types import Batch


class RobustPrefix:
    """Classifier of a model's batches by ``choices``, whose prefix gets an addition psi, found anew for each batch.

    Psi starts at 0 and takes ``steps`` of Adam on the sum over the first ``layers`` of MSE(Q (h - m) + m, h): h (B E)
    are hidden states at the last position of the prompt, Q the projection of ``fit``, m a mean.

    Args:
        model: with a prefix of one kind: embeddings, or keys and values.
        choices: allowed answers.
        layers: first layers whose outputs are looked at. Published: 3, of which the first are the embeddings, which no
            prefix moves.
        center: the mean m, "training": that of the rows of ``fit``, so that a row's answer does not hang on the rows
            beside it (chosen here); "batch": that of the batch, and 0 for one row, as in the published code.
        mass: share of the singular values that Q keeps. Published: 0.99.
        steps: of Adam for a batch. Published: 5 to 10.
        lr: rate. Published: 0.05 and 0.15 in the examples.
    """

    def __init__(
        self,
        model: PrefixLM,
        choices: Sequence[str],
        *,
        layers: int = 3,
        center: Literal["training", "batch"] = "training",
        mass: float = 0.99,
        steps: int = 5,
        lr: float = 0.05,
    ) -> None:
        if not 0 < mass <= 1:
            raise InputError(f"RobustPrefix.mass {mass}: give a share above 0, at most 1")
        if layers < 1 or steps < 0:
            raise InputError(f"RobustPrefix: layers {layers} is a number from 1 on, steps {steps} one from 0 on")
        require_one_of("RobustPrefix.center", center, ("training", "batch"))
        self.model, self.choices, self.center, self.mass = model, list(choices), center, mass
        self.steps, self.lr = steps, lr
        self.decoder = cast(ComposedDecoder, model.decoder)
        self.layers = self.decoder.language_model.decoder_layers[:layers]
        self.mean: list[Tensor] = []  # (E,) of each layer
        self.projection: list[Tensor] = []  # (E E)

    @torch.no_grad()
    def fit(self, batches: Sequence[Batch]) -> None:
        """Mean and projection of each layer from rows whose first target is chosen. InputError where none is."""
        kept: list[list[Tensor]] = [[] for _ in self.layers]
        for batch in batches:
            prefix = prefix_of(self.model, batch)
            state, hidden = read_last(self.model, self.layers, batch, prefix)
            best = self.decoder.score_choices(state, self.model.prompts(batch), self.choices).argmax(-1)
            right = torch.tensor([self.choices[n] in t[:1] for n, t in zip(best, batch.targets, strict=True)])
            for rows, states in zip(kept, hidden, strict=True):
                rows.append(states[right.to(states.device)].float())
        if not any(len(rows) for rows in kept[0]):
            raise InputError("RobustPrefix.fit: the model answers no row rightly; give rows that it was trained on")
        self.mean, self.projection = [], []
        for states in map(torch.cat, kept):
            mean = states.mean(0)
            _, size, directions = cast(Any, torch.linalg).svd(states - mean, full_matrices=False)
            count = int((size.cumsum(0) < self.mass * size.sum()).sum()) + 1
            self.mean.append(mean)
            self.projection.append(directions[:count].T @ directions[:count])

    def distance(self, hidden: Sequence[Tensor]) -> Tensor:
        """Sum over the layers of the mean squared distance of hidden states (B E) from their projection."""
        means = self.mean if self.center == "training" else [h.mean(0) * (len(h) > 1) for h in hidden]
        parts = [((h - m) @ q + m - h).square().mean()
                 for h, m, q in zip(hidden, means, self.projection, strict=True)]  # fmt: skip
        return torch.stack(parts).sum()

    def choose(self, batch: Batch) -> Tensor:
        """Log-probability (B C) of each choice; the C probabilities sum to 1."""
        if not self.mean:
            raise InputError("RobustPrefix.choose: call fit first, with batches of the training data")
        prefix = prefix_of(self.model, batch)
        psi = no_addition(prefix)
        optimizer: Any = torch.optim.Adam([psi], self.lr)
        for _ in range(self.steps):
            with torch.enable_grad():
                loss = self.distance(read_last(self.model, self.layers, batch, moved(prefix, psi))[1])
            (psi.grad,) = torch.autograd.grad(loss, [psi])
            optimizer.step()
        with torch.no_grad():
            state, _ = read_last(self.model, self.layers, batch, moved(prefix, psi))
            return self.decoder.score_choices(state, self.model.prompts(batch), self.choices)
