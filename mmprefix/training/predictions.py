"""Predictions of ``mmprefix predict``: one JSON line a row, in the order of the manifests, from all processes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from mmprefix.atomic import write_atomically
from mmprefix.data.pairs import attached_data
from mmprefix.types import Batch

log = logging.getLogger(__name__)


class WritePredictions(Callback):
    """Callback that collects the results of ``predict_step`` for each row, and writes them to ``file`` at the end.

    A line is ``{"id": ..., "prediction": ..., "references": [...], "candidates": [...]}``, which ``mmprefix evaluate``
    reads; where questions are asked it is ``{"id": ..., "questions": [...], "answers": [...], "references": [...]}``.
    Batches are homogeneous, so rows do not come in the order of the manifests: they are put back into it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._rows: list[tuple[int, dict[str, Any]]] = []
        self._positions: dict[tuple[str, str], int] = {}

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._positions = [], _manifest_positions(trainer)

    def on_predict_batch_end(  # noqa: PLR0917 (a hook of Lightning)
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        files = batch.sources or [""] * len(batch)
        for row, file in zip(outputs, files, strict=True):
            self._rows.append((self._positions.get((row["id"], file), len(self._positions)), row))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts: list[Any] = [self._rows]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._rows)
        self._rows = []
        if not trainer.is_global_zero:
            return
        pairs = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])
        last = len(self._positions)  # position of rows of no manifest; of the others, one that comes twice counts once
        rows = [row for n, (at, row) in enumerate(pairs) if at == last or not n or pairs[n - 1][0] != at]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, lambda fresh: fresh.write_text(lines, encoding="utf-8"))
        log.info("wrote %d predictions: %s", len(rows), self.file)


def _manifest_positions(trainer: Trainer) -> dict[tuple[str, str], int]:
    """Number of each row in the manifests, by its id and any of its files; empty for data that are no PairData."""
    data = attached_data(trainer)
    examples = data.rows["predict"].examples if data is not None and "predict" in data.rows else []
    return {(row.id, source): n for n, row in enumerate(examples) for source in row.sources}
