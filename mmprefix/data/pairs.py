"""Manifests → batches: PairData, the LightningDataModule of every recipe."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Sampler

from mmprefix.data.columns import ColumnMapping
from mmprefix.data.dataset import BatchLoader, LoadInput, ManifestDataset, SampleQuestions
from mmprefix.data.index import DatasetIndex, TokenCounter, build_index
from mmprefix.data.inspect import COLUMNS as _COLUMNS
from mmprefix.data.manifest import Example, listing
from mmprefix.data.manifest_file import splits
from mmprefix.data.samplers import BatchRows, BucketSampler, Epochs, EvalSampler, ResumingSampler
from mmprefix.errors import InputError
from mmprefix.types import Batch

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test", "predict"]
_STAGES: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class PairData(LightningDataModule):
    """Pictures or sounds paired with captions, from manifests.

    Which columns are read follows from the model's branches: in a Trainer ``preprocess`` and ``media`` are taken from
    ``trainer.lightning_module``; without one set both by hand before ``setup``. Several processes need
    ``Trainer(use_distributed_sampler=False)``: rows are dealt out here.

    Args:
        train: manifests to train on (one file or a list).
        val: manifests to validate on.
        test: manifests to test on.
        predict: manifests to predict; without them the rows of ``test``.
        root: a folder whose manifest.jsonl has a field ``split`` (train, val, test); used for what is not given above.
        where: keep only rows whose fields have these values, as in {label: "true"}.
        batch_size: rows a batch and process in training.
        eval_batch_size: rows a batch elsewhere; None: as in training.
        num_workers: processes that read files; 0: the main process does.
        seed: of the order of rows and the choice of captions; the same seed gives the same batches.
        on_bad: "stop" before the first step when a row is bad, or "skip" such rows and count them.
        bucket: rows of like length share a batch.
        prompt: the prompt of rows that have none.
        drop_last: leave out batches that are not full (in training).
        max_captions: captions an input and epoch, drawn anew each epoch; None: all.
        context: the field that holds what a model that reads text is told of the input (see ``mmprefix.prompt_template``): a
            text, or a list of texts of which training draws one each epoch; of several fields the first that has one.
            A+B takes the texts of both.
        max_tokens: most tokens of text in a batch of training, padding included; ``batch_size`` is then the most rows.
        target: the field that holds what is to be written, where that is no caption: label, transcript ...
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        root: str | None = None,
        where: dict[str, str | int | float | bool] | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        on_bad: Literal["stop", "skip"] = "stop",
        bucket: bool = True,
        prompt: str = "",
        drop_last: bool = False,
        max_captions: int | None = None,
        context: str | list[str] = "context",
        target: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.fields = ColumnMapping((context,) if isinstance(context, str) else tuple(context), target)
        given = {"train": train, "val": val, "test": test, "predict": predict}
        self.manifests = {key: [value] if isinstance(value, str) else value for key, value in given.items()}
        self.root, self.where = root, where
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers, self.seed, self.on_bad, self.bucket = num_workers, seed, on_bad, bucket
        self.prompt, self.drop_last, self.max_captions, self.max_tokens = prompt, drop_last, max_captions, max_tokens
        self.count: TokenCounter | None = None  # how many tokens a text has for the decoder, where that is to be known
        self.preprocess: Mapping[str, LoadInput] = {}
        self.recall: dict[str, LoadInput] = {}  # what takes the place of ``preprocess`` where features were kept
        self.media: Mapping[str, str] = {}
        self.reads_text = False
        self.rows: dict[str, DatasetIndex] = {}
        self._datasets: dict[str, ManifestDataset] = {}
        self._order: ResumingSampler | None = None
        self._origin: dict[str, Any] = {}  # of the checkpoint that is resumed, until training starts
        self._content: dict[str, Any] = {}  # all that the order of the batches follows from
        self._refuse_options()

    @property
    def has_source(self) -> bool:
        """Whether it was said where any rows come from."""
        return self.root is not None or any(self.manifests.values())

    def _refuse_options(self) -> None:
        for name in ("batch_size", "eval_batch_size", "max_captions", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"data.{name} {value}: give a number from 1 on")
        if self.num_workers < 0:
            raise InputError(f"data.num_workers {self.num_workers}: give a number from 0 on")
        if self.on_bad not in ("stop", "skip"):
            raise InputError(f'data.on_bad {self.on_bad!r}: give "stop" or "skip"')
        if not self.has_source:
            raise InputError("no data: give data.root FOLDER, or data.train, data.val, data.test or data.predict FILE")

    # ------------------------------------------------------------------------------------------------------- reading

    def setup(self, stage: str) -> None:
        """Reads and checks the manifests of ``stage`` (fit, validate, test, predict) and the headers of all files.

        Raises InputError, with file and line of each bad row, unless they are to be skipped.
        """
        if self.trainer is not None:
            module = cast(Any, self.trainer.lightning_module)
            self.preprocess = {**getattr(module, "preprocess", self.preprocess), **self.recall}
            self.media = getattr(module, "media", self.media)
            self.reads_text = getattr(module, "reads_text", self.reads_text)
            self.count = getattr(module, "count_tokens", self.count)
        if not self.preprocess and not self.reads_text and self.trainer is not None:
            raise InputError("model.branches: there is none, and without model.wording.context no text is read either")
        if not self.preprocess and not self.reads_text:
            raise InputError("PairData does not know the model's branches: set data.preprocess and data.media by hand")
        branches: dict[str, str] = {name: self.media.get(name, _COLUMNS.get(name, "image")) for name in self.preprocess}
        for split in _STAGES[stage]:
            captions = self.max_captions if split == "train" else None
            targets = split != "predict" and self.sample_questions is None
            count = self.count if self.max_tokens and split == "train" else None
            self.rows[split] = build_index(
                self._files(split), branches, self.where, targets, captions, self.fields, self.reads_text, count
            )
            self.filter_rows(self.rows[split])
            self._datasets[split] = self._dataset(self.rows[split].examples, captions, split == "train")
        faults = [fault for split in _STAGES[stage] for fault in self.rows[split].faults]
        if faults:
            count = "1 bad row" if len(faults) == 1 else f"{len(faults)} bad rows"
            if self.on_bad == "stop":
                raise InputError(f"{count} (data.on_bad skip would leave them out)\n{listing(faults)}")
            log.warning("%s left out:\n%s", count, listing(faults))

    def _files(self, split: Split) -> list[tuple[str, str | None]]:
        """The manifests of ``split``, each with the value of ``split`` that its rows must have (None: any)."""
        files = self.manifests[split]
        if files is None and split == "predict":
            return self._files("test")
        if files is not None or self.root is None:
            return [(file, None) for file in files or []]
        file = str(Path(self.root) / "manifest.jsonl")
        return [(file, split)] if split in splits(file) else []

    sample_questions: SampleQuestions | None = None  # what is asked about a row, where targets are answers

    def filter_rows(self, rows: DatasetIndex) -> None:
        """Moves rows that are of no use to this data module to the faults of ``rows``; here none."""

    def _dataset(self, examples: list[Example], captions: int | None, training: bool) -> ManifestDataset:
        bad = self.on_bad == "skip"
        return ManifestDataset(
            examples, self.preprocess, self.prompt, captions, self.seed, bad, self.sample_questions, training
        )

    # ------------------------------------------------------------------------------------------------------- loaders

    def train_dataloader(self) -> BatchLoader:
        """Batches in an order that depends on ``seed`` and epoch only, from where the run stopped if it is resumed."""
        rank, world = self._processes()
        rows = self._need("train")
        sampler = BucketSampler(
            rows.order, self.batch_size, self.seed, self.bucket, self.drop_last, rank, world, self.max_tokens
        )
        if not len(sampler):
            given = f"data.batch_size {self.batch_size}, data.drop_last {self.drop_last}, {world} processes"
            raise InputError(f"data.train: {len(rows.order)} rows make no batch ({given})")
        self._content = self._fingerprint(rows.examples, world)
        if self.trainer is None:
            return self._loader("train", sampler)
        if getattr(self.trainer, "overfit_batches", 0):
            raise InputError("trainer.overfit_batches: PairData keeps its own order; use trainer.limit_train_batches")
        return self._loader("train", self._resuming(sampler))

    def _resuming(self, sampler: Epochs) -> ResumingSampler:
        """The batches of ``sampler`` from where the run stands."""
        trainer = cast(Any, self.trainer)
        progress, limit = trainer.fit_loop.epoch_loop.batch_progress.total, trainer.limit_train_batches
        limit = min(len(sampler), limit) if isinstance(limit, int) else int(len(sampler) * limit)
        self._order = ResumingSampler(sampler, lambda: progress.processed, max(1, limit), self._start())
        return self._order

    def val_dataloader(self) -> BatchLoader | list[Batch]:
        """Every row once; an empty list where there is nothing to validate on."""
        return self._evaluation("val") if self.rows["val"].order else []

    def test_dataloader(self) -> BatchLoader:
        """Every row once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> BatchLoader:
        """Every row once, in the order of the manifests."""
        return self._evaluation("predict")

    def _evaluation(self, split: Split) -> BatchLoader:
        bucket = self.bucket and split != "predict"
        rows = self._need(split)
        return self._loader(split, EvalSampler(rows.order, self.eval_batch_size, bucket, *self._processes()))

    def _need(self, split: Split) -> DatasetIndex:
        rows = self.rows[split]
        if not rows.order:
            aim = {"train": "train on", "val": "validate on", "test": "test on", "predict": "predict"}[split]
            folder = f", or rows whose split is {split} in data.root {self.root}" if self.root else ""
            raise InputError(f"there is no row to {aim}: give data.{split} FILE{folder}")
        return rows

    def _processes(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return 0, 1
        if trainer._accelerator_connector.use_distributed_sampler:
            raise InputError(
                "trainer.use_distributed_sampler true in several processes: give false; PairData deals out the rows"
            )
        return trainer.global_rank, trainer.world_size

    def _loader(self, split: Split, sampler: Sampler[BatchRows]) -> BatchLoader:
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return BatchLoader(
            self._datasets[split],
            batch_size=None,  # the sampler draws whole batches, and the data set reads them
            sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=cuda,
            generator=torch.Generator().manual_seed(self.seed),  # a loader without one draws from torch's own
        )

    # ------------------------------------------------------------------------------------------------------ resuming

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the batches of it that are done, the batches done in all, and what their order follows from."""
        if self._order is None:
            return {}
        epoch, batches = self._order.position()
        return {"epoch": epoch, "batches": batches, "total": self._order.done(), "content": self._content}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next training goes on where ``state_dict`` was taken."""
        self._origin = state_dict

    def _start(self) -> tuple[int, int, int]:
        """Where to go on from: epoch, batches of it that are done, batches done in all.

        Raises InputError within an epoch whose batches would not be those of the checkpoint.
        """
        origin, self._origin = self._origin, {}
        if not origin:
            return 0, 0, 0
        before, now = origin["content"], self._content
        changed = [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]
        if changed and origin["batches"]:
            raise InputError(
                f"the checkpoint was taken after {origin['batches']} batches of an epoch whose order cannot be made "
                f"again: {'; '.join(changed)}; give what was, or a checkpoint from an epoch's end"
            )
        return origin["epoch"], origin["batches"], origin["total"]

    def _fingerprint(self, examples: list[Example], world: int) -> dict[str, Any]:
        content = "\n".join(f"{row.line}\t{row.id}\t{row.captions}{_told(row)}" for row in examples)
        options = ("batch_size", "seed", "bucket", "drop_last", "max_captions", "max_tokens")
        return {
            "rows": len(examples),
            "content": hashlib.sha256(content.encode()).hexdigest()[:16],
            "processes": world,
            **{f"data.{name}": getattr(self, name) for name in options},
        }

    def teardown(self, stage: str) -> None:
        """Says how many rows could not be decoded, where such rows were to be skipped."""
        bad = sum(int(self._datasets[split].bad.sum()) for split in _STAGES[stage] if split in self._datasets)
        if bad:
            log.warning("rows left out because their files could not be decoded: %d", bad)


def _told(row: Example) -> str:
    return f"\t{(row.context, *row.contexts)}" if row.context else ""


def _as_it_is(batch: Any) -> Any:
    return batch
