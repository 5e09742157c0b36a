"""A mapper trained on captions' vectors, which reads a picture's as a mixture of those that it was trained on.

DeCap: Decoding CLIP Latents for Zero-Shot Captioning via Text-Only Training (Li et al.),
https://arxiv.org/abs/2303.03032. The vectors of all training captions are kept. A picture's vector is replaced by
their mean, weighted by a softmax of their cosines to it, so that the mapper reads what lies among texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes, need_summary
from mmprefix.mappers.combinator import Combinator
from mmprefix.mappers.observer import Observer
from mmprefix.types import AnyPrefix, Features


class SupportMemory(Combinator, Observer):
    """Prefix of ``mapper`` over summaries (B G); outside training each is first projected onto the memory (M G).

    The memory holds summaries of the training inputs, of length 1; it is saved with the model. Each row is the vector
    of one training text, from which much of that text can be guessed: whoever gets the model gets these, and removing a
    user from a store of users takes none away. Train on texts that may be passed on, or without this mapper
    (``NoisySummary``).

    Args:
        mapper: the mapper that reads the summaries.
        size: rows M of the memory; of more training inputs it takes so many, evenly spread, of fewer each several
            times.
        temperature: of the softmax of cosines; the paper's value for CLIP does not fit other spaces, so it was chosen
            here.
    """

    memory: Tensor
    seen: Tensor

    def __init__(
        self, sizes: Sizes, *, mapper: Callable[[Sizes], Mapper], size: int = 2048, temperature: float = 0.05
    ) -> None:
        super().__init__(sizes)
        need_summary(self)
        if size < 1 or temperature <= 0:
            raise InputError(f"SupportMemory.size {size}, temperature {temperature}: give numbers above 0")
        self.mapper, self.size, self.temperature = mapper(sizes), size, temperature
        self.register_buffer("memory", torch.zeros(size, sizes.summary))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self._rows, self._step = torch.zeros(0, sizes.summary), 1  # every ``_step``-th of those seen, up to 2 M

    @property
    def known(self) -> bool:
        """True once it holds summaries of the training data."""
        return bool(self.seen)

    def observe(self, features: Features) -> None:
        """Take in summaries of some more inputs."""
        first = -int(self.seen) % self._step
        fresh = normalize(features.pooled.detach().float().cpu()[first :: self._step], dim=1)
        self._rows = torch.cat([self._rows, fresh])
        self.seen.add_(len(features.pooled))
        while len(self._rows) > 2 * self.size:
            self._rows, self._step = self._rows[::2], 2 * self._step
        self.memory.copy_(self._rows[torch.arange(self.size) * len(self._rows) // self.size])

    def observed(self) -> str:
        """How many inputs it has seen."""
        return f"a memory of {self.size} rows from {int(self.seen)} inputs"

    def projected(self, rows: Tensor) -> Tensor:
        """Summaries (B G) → the weighted mean of the memory, of length 1 (B G)."""
        memory = self.memory.to(rows.dtype)
        weights = (normalize(rows, dim=1) @ memory.T / self.temperature).softmax(1)
        return normalize(weights @ memory, dim=1)

    def forward(self, features: Features, context: Features | None = None) -> AnyPrefix:
        """Features of B inputs → the prefix of ``mapper``; InputError before a training began."""
        if not self.known:
            raise InputError("SupportMemory: has seen no training data; train it first")
        if not self.training:
            features = replace(features, pooled=self.projected(features.pooled))
        child: Any = self.mapper
        prefix: AnyPrefix = child(features, context)
        return prefix
