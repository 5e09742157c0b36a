"""PANDA: transfer of a trained prefix to another task, kept near what the old one expects.

PANDA: Prompt Transfer Meets Knowledge Distillation for Efficient Model Adaptation (Zhong et al. 2022),
https://arxiv.org/abs/2208.10160: the student begins as the prefix of a source task, and a frozen copy with that prefix
is the teacher; the loss is CE + 0.1 * beta * MSE(logits of the student, logits of the teacher) / batch size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.distillation.teacher import text_logits
from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.model import Branch, PrefixLM
from mmprefix.training.objective import Objective
from mmprefix.training.warm_start import warm_start
from mmprefix.types import Batch


class Panda(Objective):
    """Likelihood of the captions, and nearness to the logits of a saved model with the same mappers.

    Name the same saved model as ``model.start_from``, so that the student begins as the teacher. The squared difference
    is the mean over all target tokens and the whole vocabulary (chosen here: the paper's logits are those of classes).
    The paper's ``beta`` comes from how alike source and target are; how is not known, so give a number.

    Args:
        teacher: the saved model of the source task (directory or hub repository).
        beta: weight of the teacher.
    """

    def __init__(self, *, teacher: str, beta: float = 1.0) -> None:
        if beta < 0:
            raise InputError(f"Panda.beta {beta}: give a number from 0 on")
        self.source, self.beta = teacher, beta
        self.teacher: PrefixLM | None = None

    def begin(self, model: PrefixLM) -> None:
        """Make the teacher: mappers of its own with the saved tensors, over the same frozen parts."""
        self.teacher = with_own_mappers(model)
        warm_start(self.teacher, self.source)
        for mapper in (self.teacher.mappers, self.teacher.task_prefix):
            if mapper is not None:
                mapper.requires_grad_(False).eval()

    def loss(self, model: PrefixLM, batch: Batch, smoothing: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the targets, and the distance of the logits from the teacher's."""
        if self.teacher is None:
            raise InputError("Panda: has no teacher yet; call begin first")
        logits, ids = target_logits(model, batch)
        with torch.no_grad():
            expected, _ = target_logits(self.teacher, batch)
        distance = F.mse_loss(logits, expected)
        loss = F.cross_entropy(logits, ids, label_smoothing=smoothing) + 0.1 * self.beta * distance / len(batch)
        return loss, {"distance": distance.detach()}


def target_logits(model: PrefixLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (C V) of all tokens of all targets of a batch, input by input, and these tokens (C,).

    Raises InputError for questions, and for a decoder that is not made of tokens.
    """
    decoder = model.decoder
    if not isinstance(decoder, ComposedDecoder) or any(batch.questions):
        raise InputError("Panda: reads captions of a decoder of tokens, and no questions; leave the objective out")
    prompts = model.prompts(batch)
    owner = [row for row, texts in enumerate(batch.targets) for _ in texts]
    ids = [decoder.codec.target_ids(p, t) for p, texts in zip(prompts, batch.targets, strict=True) for t in texts]
    state = model.prefill(batch)
    state = state.select(torch.tensor(owner, device=state.mask.device))
    logits = torch.cat(text_logits(decoder, state, [prompts[row] for row in owner], ids))
    return logits, torch.tensor([token for text in ids for token in text], device=logits.device)


def with_own_mappers(model: PrefixLM) -> PrefixLM:
    """Model with copies of the mappers, over the same frozen parts."""

    def builder(mapper: Mapper | None) -> Callable[[Sizes], Mapper] | None:
        own = copy.deepcopy(mapper)
        return None if own is None else lambda sizes: own

    branches = {n: Branch(model.encoder(n), builder(model.mapper(n)), model.contexts.get(n)) for n in model.encoders}
    return PrefixLM(branches, model.decoder, builder(model.task_prefix), wording=model.wording)
