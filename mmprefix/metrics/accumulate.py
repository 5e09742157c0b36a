"""Caption scores of a whole data set, gathered over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torchmetrics import Metric

from mmprefix.errors import InputError
from mmprefix.metrics.caption import caption


class CaptionItem(NamedTuple):
    """One scored example."""

    id: str
    prediction: str
    references: list[str]


class CaptionScores(Metric):
    """Collect captions, and score each id once over all processes: CIDEr-D and BLEU are figures of a set.

    A distributed sampler repeats examples to fill its last batch; averaging per process would count them twice. Here
    the strings are gathered, an id that comes again is left out, and every process computes the same figures.
    ``tokenize`` is that of ``mmprefix.metrics.caption``.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, tokenize: str = "ptb") -> None:
        # Strings are no tensors: this class gathers them itself, so torchmetrics must not.
        # Nor may one process answer from a cache while another waits for it.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.tokenize = tokenize
        self._seen: dict[str, CaptionItem] = {}

    def update(self, ids: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add a batch: an id, a prediction and its references an example. The first prediction of an id counts."""
        if not len(ids) == len(predictions) == len(references):
            raise InputError(f"{len(ids)} ids, {len(predictions)} predictions, {len(references)} lists of references")
        for name, prediction, texts in zip(ids, predictions, references, strict=True):
            self._seen.setdefault(name, CaptionItem(name, prediction, list(texts)))

    def forward(
        self, ids: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """Add a batch; return the figures of that batch alone, in this process."""
        self.update(ids, predictions, references)
        return caption(predictions, references, self.tokenize)

    def items(self) -> list[CaptionItem]:
        """Every example of every process once, sorted by id. All processes must call it: it communicates."""
        parts: list[Any] = [self._seen]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._seen)
        merged: dict[str, CaptionItem] = {}
        for part in parts:
            merged = part | merged  # the lowest process that holds an id gives its prediction, on every process
        return [merged[name] for name in sorted(merged)]

    def compute(self) -> dict[str, float]:
        """The figures of ``mmprefix.metrics.caption`` over ``items()``; empty where nothing was collected."""
        items = self.items()
        if not items:
            return {}
        return caption([item.prediction for item in items], [item.references for item in items], self.tokenize)

    def reset(self) -> None:
        """Remove all captions."""
        super().reset()
        self._seen = {}
