"""LAE's two experts for continual learning: a prefix that learns (online) and its exponential mean (offline).

A Unified Continual Learning Framework with General Parameter-Efficient Tuning (Gao et al. 2023),
https://arxiv.org/abs/2303.10070: the offline expert follows the online one by an exponential mean, decay 0.9999 a step,
and both are asked at inference: the elementwise maximum of their softmaxes decides
(``mmprefix.inference.prefixes.experts``). ``mmprefix.training.methods.lae.FollowOnline`` trains both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.combinator import Combinator
from mmprefix.mappers.user_rows import UserRows
from mmprefix.types import AnyPrefix, Features


class OnlineOffline(Combinator):
    """Prefix of ``mapper``, whose parameters have an exponential mean beside them; a saved model holds both.

    Not for rows of users, who join and leave: of one who was removed the offline expert would keep the numbers.

    Args:
        mapper: the online expert, which makes the prefix of training and of a plain call.
        decay: of the mean, a step.
    """

    tasks: Tensor

    def __init__(self, sizes: Sizes, *, mapper: Callable[[Sizes], Mapper], decay: float = 0.9999) -> None:
        super().__init__(sizes)
        if not 0 <= decay < 1:
            raise InputError(f"OnlineOffline.decay {decay}: give a number from 0 on, below 1")
        self.decay = decay
        self.mapper = mapper(sizes)
        for part in self.mapper.modules():
            if isinstance(part, UserRows):
                raise InputError(
                    f"OnlineOffline: {type(part).__name__} has rows of users, who join and leave, and an offline "
                    "expert would keep them; put it around the task's prefix (model.prefix), and the users beside it"
                )
        self._keep(self.mapper)
        self.register_buffer("tasks", torch.zeros((), dtype=torch.long))  # so far, the present one too

    def _keep(self, expert: Mapper) -> None:
        """Take the parameters of ``expert`` as the offline ones, in buffers of new names."""
        self.offline = nn.Module()
        for name, parameter in expert.named_parameters():
            self.offline.register_buffer(name.replace(".", "-"), parameter.detach().clone())

    def forward(self, features: Features, context: Features | None = None) -> AnyPrefix:
        """Features of B inputs → the online expert's prefix."""
        return self.mapper(features, context)

    @torch.no_grad()
    def follow(self, decay: float | None = None) -> None:
        """Move the offline expert towards the online one: decay * offline + (1 - decay) * online."""
        decay = self.decay if decay is None else decay
        for name, parameter in self.mapper.named_parameters():
            offline = self.offline.get_buffer(name.replace(".", "-"))
            offline.mul_(decay).add_(parameter.detach(), alpha=1 - decay)

    def require_precision(self) -> None:
        """Refuse parameters in a precision whose numbers a share of 1 - ``decay`` of the way would not move."""
        kinds = {parameter.dtype for parameter in self.mapper.parameters() if parameter.dtype.is_floating_point}
        coarse = [kind for kind in kinds if torch.finfo(kind).eps > 1 - self.decay]
        if coarse:
            name = str(coarse[0]).removeprefix("torch.")
            raise InputError(
                f"OnlineOffline.decay {self.decay}: numbers in {name} cannot follow by so little; train in "
                "trainer.precision 32-true or bf16-mixed"
            )

    @torch.no_grad()
    def offline_expert(self) -> Mapper:
        """Copy of the mapper with the offline parameters; buffers are the online ones."""
        expert = copy.deepcopy(self.mapper)
        for name, parameter in expert.named_parameters():
            parameter.copy_(self.offline.get_buffer(name.replace(".", "-")))
        return expert

    def merged(self) -> Mapper:
        """Both experts merged."""
        online = self.mapper.merged()
        if online is self.mapper:
            return self
        clone = self.with_children([online])
        clone._keep(self.offline_expert().merged())
        return clone
