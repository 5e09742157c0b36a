"""Caption metrics of a whole data set, accumulated over batches and processes."""

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
    """Collect captions and score each id once over all processes: CIDEr-D and BLEU are metrics of a whole set.

    A distributed sampler repeats examples to fill its last batch, and a mean over processes would count them twice.
    This metric gathers the strings, drops repeated ids, and computes the same scores in every process.
    ``tokenize`` is that of ``mmprefix.metrics.caption``.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, tokenize: str = "ptb") -> None:
        # Strings are not tensors: this class gathers them itself, so torchmetrics must not.
        # No process may answer from its cache while another waits in the gathering.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.tokenize = tokenize
        self._seen: dict[str, CaptionItem] = {}

    def update(self, ids: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add a batch: id, prediction and references of each example. The first prediction of an id counts."""
        if not len(ids) == len(predictions) == len(references):
            raise InputError(f"{len(ids)} ids, {len(predictions)} predictions, {len(references)} lists of references")
        for name, prediction, texts in zip(ids, predictions, references, strict=True):
            self._seen.setdefault(name, CaptionItem(name, prediction, list(texts)))

    def forward(
        self, ids: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """Add a batch, and return the scores of that batch alone, in this process."""
        self.update(ids, predictions, references)
        return caption(predictions, references, self.tokenize)

    def items(self) -> list[CaptionItem]:
        """All examples of all processes, each once, sorted by id. Collective: every process must call it."""
        parts: list[Any] = [self._seen]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._seen)
        merged: dict[str, CaptionItem] = {}
        for part in parts:
            merged = part | merged  # on every process, an id takes its prediction from the lowest rank that holds it
        return [merged[name] for name in sorted(merged)]

    def compute(self) -> dict[str, float]:
        """Scores of ``mmprefix.metrics.caption`` over ``items()``; empty if nothing was collected. Collective."""
        items = self.items()
        if not items:
            return {}
        return caption([item.prediction for item in items], [item.references for item in items], self.tokenize)

    def reset(self) -> None:
        """Drop all collected examples."""
        super().reset()
        self._seen = {}
