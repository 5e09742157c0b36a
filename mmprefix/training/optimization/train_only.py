"""Training of some tensors alone: one user's prefix, with everything else frozen to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmprefix.decoders.base import Decoder
from mmprefix.encoders.base import EncoderMode
from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper
from mmprefix.mappers.user_rows import UserRows
from mmprefix.model import PrefixLM
from mmprefix.training.optimization.optimizer import OptimizerFactory, is_in, short_name
from mmprefix.training.optimization.row_adam import RowAdam


def trained_alone(model: PrefixLM, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Parameters of ``model`` that are trained where ``names`` says which; None: all that can be.

    A name is that of a branch, ``prefix`` or ``decoder``, or goes on to what is inside: ``user.rows``. All other
    parameters want no gradient from now on, and mappers without a trained one are in evaluation mode. Where a name is
    that of users' rows themselves no user is hidden, so that nobody's row stays. Raises InputError for a name that is
    no part of the training.
    """
    parameters = model.trained_parameters()
    if names is None:
        return parameters
    short = {name: short_name(name) for name in parameters}
    for name in names:
        if not any(is_in(full, name) for full in short.values()):
            parts = sorted({full.split(".", 1)[0] for full in short.values()})
            raise InputError(f"model.train_only {name}: no such part is trained; give any of {', '.join(parts)}")
    chosen = {name: p for name, p in parameters.items() if any(is_in(short[name], one) for one in names)}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    alone = {id(parameter) for name, parameter in chosen.items() if short[name] in names}
    for part in model.modules():
        if isinstance(part, UserRows) and id(part.rows) in alone:
            part.nobody = 0.0
    _calm(model)
    return chosen


def _calm(model: PrefixLM) -> None:
    """Put parts without a trained parameter into evaluation mode: no dropout, no statistics of batches."""
    for name in model.encoders:
        if model.encoder(name).mode is EncoderMode.LEARNING and not _wants_gradient(model.encoder(name)):
            raise InputError(f"model.train_only: UnfreezeUntil trains the encoder of branch {name!r}; leave one out")
    for part in model.modules():
        if isinstance(part, Mapper | Decoder) and not _wants_gradient(part):
            part.eval()


def _wants_gradient(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def default_optimizer(model: PrefixLM) -> OptimizerFactory:
    """Optimizer of a recipe that names none: by rows where users have rows, else AdamW."""
    return RowAdam if any(isinstance(part, UserRows) for part in model.modules()) else torch.optim.AdamW


def require_rows_alone(model: PrefixLM, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that moves the rows of users who are not in a batch, where rows of users are trained."""
    rows = {id(part.rows) for part in model.modules() if isinstance(part, UserRows)}
    trains = any(id(p) in rows for group in optimizer.param_groups for p in group["params"])
    if trains and not isinstance(optimizer, RowAdam):
        name = type(optimizer).__name__
        raise InputError(
            f"model.optimizer {name}: moves users who are not in a batch too; with model.train_only take "
            "mmprefix.training.RowAdam"
        )
