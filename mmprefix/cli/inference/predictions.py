"""Predictions of ``mmprefix predict``: one JSON line a row, in the order of the manifests, from all processes.

While the run goes on each row is appended to FILE.partial, so that an interruption keeps what is done, and the same
command goes on with it. At the end the whole file is written in one step, and the partial one is gone.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from mmprefix.atomic import disk_errors_as_input_errors, write_atomically
from mmprefix.cli.inference.output import model_fingerprint
from mmprefix.cli.inference.row_file import ADVICE, RowFile, RowWriter, require_same_options
from mmprefix.data.pairs import attached_data
from mmprefix.errors import InputError
from mmprefix.types import Batch

log = logging.getLogger(__name__)

_ROW = "row"  # number of a row in the manifests, in a line of a partial file
_NOT_IN_ROWS = (  # options of the data that say how fast, and not what stands in a row
    "batch_size", "bucket", "drop_last", "eval_batch_size", "max_captions", "max_tokens", "num_workers", "train", "val",
)  # fmt: skip


class WritePredictions(Callback):
    """Callback that collects the results of ``predict_step`` for each row, and writes them to ``file``.

    A line is ``{"id": ..., "prediction": ..., "references": [...], "candidates": [...]}``, which ``mmprefix evaluate``
    reads; where questions are asked it is ``{"id": ..., "questions": [...], "answers": [...], "references": [...]}``.
    Batches are homogeneous, so rows do not come in the order of the manifests: they are put back into it.

    Args:
        file: the predictions.
        options: what the rows depend on; a partial file of others is refused (see ``row_options``).
        overwrite: begin anew where a partial file is there.
    """

    def __init__(self, file: Path, options: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.file, self.options, self.overwrite = file, dict(options), overwrite
        self._rows: list[tuple[int, dict[str, Any]]] = []
        self._positions: dict[tuple[str, str], int] = {}
        self._partial: RowFile | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave out the rows that an earlier run has done, whatever the number of its processes.

        Raises InputError for a partial file of other options, and for one that another process is writing.
        """
        data = attached_data(trainer)
        examples = data.rows["predict"].examples if data is not None else []
        self._positions = {(row.id, source): n for n, row in enumerate(examples) for source in row.sources or [""]}
        digest = hashlib.sha256(repr(examples).encode("utf-8", "replace")).hexdigest()
        options = self.options | {"rows of the manifests": digest[:12]}
        kept = self._kept(trainer, options)
        if data is not None:
            done = sorted({position for position, _ in kept})
            data.done = frozenset(done if len(done) < len(examples) else done[:-1])  # a run without rows has no end
        rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
        partial = RowFile(self.file.with_name(f"{self.file.name}.partial{rank}"), RowWriter("jsonl", ()))
        partial.begin(options, overwrite=False)
        self._partial, self._rows = partial, kept if trainer.is_global_zero else []
        if self._rows:
            log.info("%d predictions are there already: %s", len(self._rows), partial.path)

    def _kept(self, trainer: Trainer, options: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        """Positions and rows of an earlier run's partial files, which are removed where they are to be overwritten."""
        with disk_errors_as_input_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero and self.overwrite:
            self._remove_partial()
        trainer.strategy.barrier()
        kept: list[tuple[int, dict[str, Any]]] = []
        for partial in self._partial_files():
            require_same_options(partial.path, partial.memory, options)
            kept += rows_in(partial.path)
        trainer.strategy.barrier()  # all have read before one writes
        return kept

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
            position = self._positions.get((row["id"], file), len(self._positions))
            self._rows.append((position, row))
            if self._partial is not None:
                self._partial.write({_ROW: position, **row}, [])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say where the rows are that were done before the end."""
        self._close()
        if self._rows and trainer.is_global_zero:
            path = self.file.with_name(f"{self.file.name}.partial")
            log.warning("%d predictions are kept: %s; the same command goes on", len(self._rows), path)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts: list[Any] = [self._rows]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._rows)
        self._rows = []
        self._close()
        if not trainer.is_global_zero:
            return
        pairs = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])
        last = len(self._positions)  # position of rows of no manifest; of the others, one that comes twice counts once
        rows = [row for n, (at, row) in enumerate(pairs) if at == last or not n or pairs[n - 1][0] != at]
        write_atomically(self.file, lambda fresh: fresh.write_text(_lines(rows), encoding="utf-8"))
        self._remove_partial()
        log.info("wrote %d predictions: %s", len(rows), self.file, extra={"result": True})

    def _close(self) -> None:
        if self._partial is not None:
            self._partial.close()
            self._partial = None

    def _partial_files(self) -> list[RowFile]:
        """Partial files of all processes of an earlier run."""
        paths = sorted(self.file.parent.glob(f"{glob.escape(self.file.name)}.partial*"))
        return [RowFile(path, RowWriter("jsonl", ())) for path in paths]

    def _remove_partial(self) -> None:
        for partial in self._partial_files():
            partial.path.unlink(missing_ok=True)
            partial.memory.unlink(missing_ok=True)


def row_options(config: Mapping[str, Any], model: Path | None) -> dict[str, Any]:
    """Options that a prediction depends on, by name: of model, data and precision; and the hash of what was trained.

    ``config`` is the configuration of the run as plain data, ``model`` its checkpoint or saved model.
    """
    data = config.get("data") or {}
    own = {name: value for name, value in (data.get("init_args") or {}).items() if name not in _NOT_IN_ROWS}
    parts = {"model": config["model"], "data": {**data, "init_args": own}, "seed_everything": config["seed_everything"]}
    parts["trainer"] = {"precision": config["trainer"].get("precision")}
    trained = "" if model is None else model_fingerprint(model)
    return dict(_named(parts, "-")) | {"model": trained}


def _named(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Options below ``name``, a dotted name each."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _named(inside, f"{name}-{key}" if name == "-" else f"{name}.{key}")
    else:
        yield name, value


def rows_in(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Position and row of each whole line of a partial file; the rest of a line that was cut off is left."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            yield int(row.pop(_ROW)), row
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}:{number}: is no row that this command writes; {ADVICE}") from error


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
