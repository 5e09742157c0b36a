"""Predictions of ``mmprefix predict``: one JSON line a row, in the order of the manifests, from all processes.

While the run goes on each batch is appended to FILE.partial, so that an interruption keeps what is done; at the end the
whole file is written in one step, and the partial one is gone.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from mmprefix.atomic import disk_errors_as_input_errors, write_atomically
from mmprefix.data.pairs import attached_data
from mmprefix.types import Batch

log = logging.getLogger(__name__)


class WritePredictions(Callback):
    """Callback that collects the results of ``predict_step`` for each row, and writes them to ``file``.

    A line is ``{"id": ..., "prediction": ..., "references": [...], "candidates": [...]}``, which ``mmprefix evaluate``
    reads; where questions are asked it is ``{"id": ..., "questions": [...], "answers": [...], "references": [...]}``.
    Batches are homogeneous, so rows do not come in the order of the manifests: they are put back into it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._rows: list[tuple[int, dict[str, Any]]] = []
        self._positions: dict[tuple[str, str], int] = {}
        self._partial, self._open = file, ExitStack()
        self._stream: IO[str]

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._positions = [], _manifest_positions(trainer)
        rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
        self._partial = self.file.with_name(f"{self.file.name}.partial{rank}")
        with disk_errors_as_input_errors(self._partial):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._open.enter_context(self._partial.open("w", encoding="utf-8"))

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
        with disk_errors_as_input_errors(self._partial):
            self._stream.write(_lines(outputs))
            self._stream.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say where the rows are that were done before the end."""
        self._open.close()
        if self._rows and trainer.is_global_zero:
            log.warning("%d predictions are kept: %s", len(self._rows), self._partial)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts: list[Any] = [self._rows]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._rows)
        self._rows = []
        self._open.close()
        if not trainer.is_global_zero:
            self._partial.unlink(missing_ok=True)
            return
        pairs = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])
        last = len(self._positions)  # position of rows of no manifest; of the others, one that comes twice counts once
        rows = [row for n, (at, row) in enumerate(pairs) if at == last or not n or pairs[n - 1][0] != at]
        write_atomically(self.file, lambda fresh: fresh.write_text(_lines(rows), encoding="utf-8"))
        self._partial.unlink(missing_ok=True)
        log.info("wrote %d predictions: %s", len(rows), self.file)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _manifest_positions(trainer: Trainer) -> dict[tuple[str, str], int]:
    """Number of each row in the manifests, by its id and any of its files; empty for data that are no PairData."""
    data = attached_data(trainer)
    examples = data.rows["predict"].examples if data is not None and "predict" in data.rows else []
    return {(row.id, source): n for n, row in enumerate(examples) for source in row.sources}
