"""Policy head: features of a model that has read a plan → the action of each of its steps, trained by cloning.

EmbodiedGPT (Mu et al. 2023, https://arxiv.org/abs/2305.15021) gives the plan back to the Embodied-former as its text,
and a policy reads what comes out beside global features of the picture: an MLP over both, trained on demonstrations.
Here the actions are classes, and the number of the step is read, too (chosen here: one head for all steps of a plan).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mmprefix.errors import InputError
from mmprefix.inference.tasks import InputFeatures
from mmprefix.mappers.calibrated import Moments


@dataclass(frozen=True)
class Demonstrations:
    """Steps that were shown: observation (N D), number of the step from 0 on (N,), class of its action (N,)."""

    observations: Tensor
    steps: Tensor
    actions: Tensor

    @classmethod
    def of(cls, features: Sequence[InputFeatures], actions: Sequence[Sequence[int]]) -> Demonstrations:
        """Demonstrations of inputs, each with the actions of its steps in order; InputError where there is none."""
        if len(features) != len(actions) or not any(actions):
            raise InputError(f"policy: {len(features)} inputs and actions of {len(actions)}; give at least one step")
        seen = [observation(row) for row, steps in zip(features, actions, strict=True) for _ in steps]
        numbers = [number for steps in actions for number, _ in enumerate(steps)]
        return cls(
            torch.stack(seen), torch.tensor(numbers), torch.tensor([step for steps in actions for step in steps])
        )


def observation(features: InputFeatures) -> Tensor:
    """All numbers of an input's prefix and of its encoders' summaries, one after the other (D,)."""
    return torch.cat([features.prefix.flatten(), *(value for _, value in sorted(features.summaries.items()))])


class PolicyHead(nn.Module):
    """Observations (B D), standardised, and numbers of steps (B,) → logits of the actions (B A).

    Args:
        observed: D.
        steps: most steps of a plan.
        actions: A.
        hidden: width of the two hidden layers.
        dropout: probability of zeroing a number of the hidden layers in training.
    """

    def __init__(self, observed: int, steps: int, actions: int, *, hidden: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.steps = steps
        self.moments = Moments(observed)
        layers = [nn.Linear(observed + steps, hidden), nn.ReLU(), nn.Dropout(dropout)]
        layers += [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.model = nn.Sequential(*layers, nn.Linear(hidden, actions))

    def forward(self, observations: Tensor, steps: Tensor) -> Tensor:
        numbers = F.one_hot(steps.clamp(max=self.steps - 1), self.steps).to(observations.dtype)
        return self.model(torch.cat([self.moments(observations), numbers], dim=1))

    @torch.no_grad()
    def act(self, features: InputFeatures, steps: int) -> list[int]:
        """Likeliest action of each of ``steps`` steps of a plan for one input."""
        seen = observation(features).expand(steps, -1)
        actions: list[int] = self(seen, torch.arange(steps)).argmax(1).tolist()
        return actions


class BehaviourCloning(LightningModule):
    """Training of a ``head`` on demonstrations: cross-entropy of the actions that were taken."""

    def __init__(self, head: PolicyHead, lr: float) -> None:
        super().__init__()
        self.head, self.lr = head, lr

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        observations, steps, actions = batch
        return F.cross_entropy(self.head(observations, steps), actions)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head.parameters(), lr=self.lr, weight_decay=0.01)


def clone(
    shown: Demonstrations, actions: int, *, epochs: int = 20, batch_size: int = 64, lr: float = 1e-3, seed: int = 0
) -> PolicyHead:
    """Policy of so many ``actions``, trained on what was ``shown``, in evaluation mode."""
    seed_everything(seed, verbose=False)
    head = PolicyHead(shown.observations.shape[1], int(shown.steps.max()) + 1, actions)
    head.moments.update(shown.observations)
    rows = TensorDataset(shown.observations, shown.steps, shown.actions)
    loader = DataLoader(rows, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BehaviourCloning(head, lr), loader)
    return head.eval()
