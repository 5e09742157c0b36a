"""Batches that hold one task each, the rows of one user, and parts of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mmprefix.data.index import DatasetIndex
from mmprefix.data.pairs import PairData
from mmprefix.types import Batch, Features, Media


class TaskBatches(PairData):
    """``PairData`` whose batches of training hold rows of one user each, so that a batch is a task."""

    def filter_rows(self, rows: DatasetIndex) -> None:
        """Let rows of different users not share a batch; nothing is left out."""
        super().filter_rows(rows)
        if rows is self.rows.get("train"):
            users = [example.user for example in rows.examples]
            rows.keys[:] = [
                key._replace(inputs=key.inputs | {f"user: {user}"}) for key, user in zip(rows.keys, users, strict=True)
            ]


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Batch of the ``rows`` of another, in that order."""
    inputs: dict[str, Media | Features] = {}
    for name, value in batch.inputs.items():
        at = torch.tensor(list(rows), device=(value.mask if isinstance(value, Features) else value.values).device)
        if isinstance(value, Features):
            inputs[name] = Features(value.frames[at], value.mask[at], value.pooled[at])
        else:
            inputs[name] = Media(value.values[at], value.lengths[at])
    absent = {name: mask[torch.tensor(list(rows), device=mask.device)] for name, mask in batch.absent.items()}
    lists = ("prompts", "targets", "contexts", "ids", "sources", "questions", "users")
    chosen = {name: [own[row] for row in rows] for name in lists if (own := getattr(batch, name))}
    return replace(batch, inputs=inputs, absent=absent, **chosen)
