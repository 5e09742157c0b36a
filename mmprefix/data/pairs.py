"""Manifests → batches: PairData, the LightningDataModule of every recipe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import Sampler

from mmprefix.data.collate import identity
from mmprefix.data.columns import ColumnMapping
from mmprefix.data.dataset import BatchLoader, ManifestDataset, leave_signals_to_main
from mmprefix.data.index import DatasetIndex, IndexOptions, build_index
from mmprefix.data.long_captions import LongCaptions
from mmprefix.data.manifest import Example, listing
from mmprefix.data.model_inputs import HasModelInputs, ModelInputs
from mmprefix.data.resume import HISTORIES, RunPosition, order_fingerprint
from mmprefix.data.sample import SampleOptions, SampleQuestions
from mmprefix.data.samplers import BatchRows, BucketSampler, EvalSampler, rank_and_world
from mmprefix.data.sources import Split, manifests_of
from mmprefix.errors import InputError, NoRowsError, require_one_of, require_text
from mmprefix.types import Batch

log = logging.getLogger(__name__)

_Stages = dict[str, list[Split]]
_STAGES: _Stages = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"], "predict": ["predict"]}
_PURPOSES = {"train": "train on", "val": "validate on", "test": "test on", "predict": "predict"}
_ORDER_OPTIONS = ("batch_size", "seed", "bucket", "drop_last", "max_captions", "max_tokens", "history_dropout")


class PairData(LightningDataModule):
    """Images or sounds paired with captions, from manifests.

    The columns to read follow from the model's branches: a Trainer's ``lightning_module`` gives its ``inputs``
    (``mmprefix.data.model_inputs.ModelInputs``). Without a Trainer set the attribute ``inputs`` by hand before
    ``setup``. Several processes need ``Trainer(use_distributed_sampler=False)``: rows are dealt out here.

    Args:
        train: manifests to train on (one file or a list).
        val: manifests to validate on.
        test: manifests to test on.
        predict: manifests to predict; without them the rows of ``test``.
        root: a folder with train.jsonl, val.jsonl and test.jsonl, or with a manifest.jsonl that has a field ``split``
            (train, val, test); used for what is not given above.
        media_root: the folder of the files that manifests name; None: that of each manifest.
        where: keep only rows whose fields have these values, as in {label: "true"}.
        batch_size: rows a batch and process in training.
        eval_batch_size: rows a batch elsewhere; None: as in training.
        num_workers: processes that read files; 0: the main process does.
        seed: of the order of rows and the choice of captions; the same seed gives the same batches.
        on_bad: "stop" before the first step when a row is bad, or "skip" such rows and count them.
        bucket: rows of like length share a batch, which saves padding; False mixes them, better for a training of few
            steps where length tells the kind of text (docs/tuning.md).
        prompt: the prompt of rows that have none.
        drop_last: leave out batches that are not full (in training).
        max_captions: captions an input and epoch, drawn anew each epoch; None: all.
        context: the column with the context that a model may read beside its input (see ``mmprefix.prompt_template``):
            a text, or a list of texts of which training draws one each epoch; of several columns the first that has
            one. A+B takes the texts of both.
        target: the column with the target, where that is no caption: label, transcript ...
        max_tokens: most tokens of text in a batch of training, padding included; ``batch_size`` is then the most rows.
        histories: JSON lines {"user", "history": [texts]}: what a branch named history, or a prompt with
            ``wording.history``, reads of a row's user, without the row's captions; a prompt of training draws anew.
        history_dropout: probability that a prompt of training shows none of these texts.
        long_captions: captions that do not fit into the decoder's positions: "error" makes their rows bad, "skip"
            leaves them out, "cut" shortens them by words.
    """

    inputs: ModelInputs | None = None
    sample_questions: SampleQuestions | None = None  # draws questions about a row, where targets are answers
    done: frozenset[int] = frozenset()  # numbers of the rows to predict that an earlier run has predicted

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        *,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        root: str | None = None,
        media_root: str | None = None,
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
        histories: str | None = None,
        history_dropout: float = 0.0,
        long_captions: LongCaptions = "error",
    ) -> None:
        super().__init__()
        self.columns = ColumnMapping((context,) if isinstance(context, str) else tuple(context), target)
        manifests = {"train": train, "val": val, "test": test, "predict": predict}
        self.manifests = {key: [value] if isinstance(value, str) else value for key, value in manifests.items()}
        self.root, self.media_root, self.where = root, media_root, where
        self.batch_size, self.eval_batch_size = batch_size, batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers, self.seed, self.on_bad, self.bucket = num_workers, seed, on_bad, bucket
        self.prompt, self.drop_last, self.max_captions, self.max_tokens = prompt, drop_last, max_captions, max_tokens
        self.long_captions: LongCaptions = long_captions
        self.histories, self.history_dropout = histories, history_dropout
        self.rows: dict[Split, DatasetIndex] = {}
        self._datasets: dict[Split, ManifestDataset] = {}
        self._position = RunPosition()
        self._refuse_options()

    def has_source(self) -> bool:
        """Return True where an option names rows to read."""
        return self.root is not None or any(self.manifests.values())

    def _refuse_options(self) -> None:
        for name in ("batch_size", "eval_batch_size", "max_captions", "max_tokens", "num_workers"):
            value, least = getattr(self, name), int(name != "num_workers")
            if value is not None and value < least:
                raise InputError(f"data.{name} {value}: give a number from {least} on")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"data.seed {self.seed}: give a number from 0 to 2**63 - 1")
        if not 0 <= self.history_dropout <= 1:
            raise InputError(f"data.history_dropout {self.history_dropout}: give a probability from 0 to 1")
        if self.on_bad not in ("stop", "skip"):
            raise InputError(f'data.on_bad {self.on_bad!r}: give "stop" or "skip"')
        require_text("data.prompt", self.prompt)
        require_one_of("data.long_captions", self.long_captions, ("error", "skip", "cut"))
        if not self.has_source():
            raise InputError("no data: give data.root FOLDER, or data.train, data.val, data.test or data.predict FILE")

    def setup(self, stage: str) -> None:
        """Read and check the manifests of ``stage`` (fit, validate, test, predict) and the headers of all files.

        Raises InputError, with file and line of each bad row, unless they are to be skipped.
        """
        inputs = self._model_inputs()
        for split in _STAGES[stage]:
            self.rows[split] = self.read_rows(split, inputs)
            self.filter_rows(self.rows[split])
            options = SampleOptions(
                prompt=self.prompt,
                max_captions=self._max_captions(split),
                seed=self.seed,
                training=split == "train",
                sample_questions=self.sample_questions,
                wording=inputs.wording,
                history_dropout=self.history_dropout,
            )
            examples, skip = self.rows[split].examples, self.on_bad == "skip"
            self._datasets[split] = ManifestDataset(examples, inputs.load, options, skip_bad=skip)
        faults = list(dict.fromkeys(fault for split in _STAGES[stage] for fault in self.rows[split].faults))
        if faults:
            count = "1 bad row" if len(faults) == 1 else f"{len(faults)} bad rows"
            lines = listing(faults, near=self.media_root)
            if self.on_bad == "stop":
                raise InputError(f"{count} (data.on_bad skip would leave them out)\n{lines}")
            log.warning("%s left out:\n%s", count, lines)

    def read_rows(self, split: Split, inputs: ModelInputs) -> DatasetIndex:
        """Rows of ``split`` that feed ``inputs``, and the faults of the others."""
        return build_index(self._files(split), inputs, self._index_options(split))

    def _model_inputs(self) -> ModelInputs:
        """``inputs`` where they were set, else those of the Trainer's module."""
        inputs = self.inputs
        if inputs is None and self.trainer is not None and isinstance(self.trainer.lightning_module, HasModelInputs):
            inputs = self.trainer.lightning_module.inputs
        if inputs is None:
            raise InputError("PairData does not know the model's branches: set data.inputs, a ModelInputs, by hand")
        contexts = () if self.columns.context == ColumnMapping().context else self.columns.context
        inputs.require_use(contexts, questions=self.sample_questions is not None, histories=self.histories)
        return inputs

    def _index_options(self, split: Split) -> IndexOptions:
        return IndexOptions(
            where=self.where,
            columns=self.columns,
            targets=split != "predict" and self.sample_questions is None,
            max_captions=self._max_captions(split),
            count_tokens=split == "train" and self.max_tokens is not None,
            media_root=self.media_root,
            grouped=self.sample_questions is None,
            long_captions=self.long_captions,
            histories=self.histories,
            prompt=self.prompt,
        )

    def _max_captions(self, split: Split) -> int | None:
        return self.max_captions if split == "train" else None

    def _files(self, split: Split) -> list[tuple[str, str | None]]:
        """Manifests of ``split``, each with the value of ``split`` that its rows must have (None: any)."""
        return manifests_of(split, self.manifests, self.root)

    def filter_rows(self, rows: DatasetIndex) -> None:
        """Move rows that this data module cannot use to the faults of ``rows``; none by default."""

    def train_dataloader(self) -> BatchLoader:
        """Loader whose order depends on ``seed`` and epoch only; a resumed run goes on where it stopped."""
        (rank, world), rows = rank_and_world(self.trainer), self._rows_of("train")
        sampler = BucketSampler(
            rows.keys,
            self.batch_size,
            seed=self.seed,
            bucket=self.bucket,
            drop_last=self.drop_last,
            rank=rank,
            world=world,
            max_tokens=self.max_tokens,
        )
        if not len(sampler):
            options = f"data.batch_size {self.batch_size}, data.drop_last {self.drop_last}, {world} processes"
            raise InputError(f"data.train: {len(rows.keys)} rows make no batch ({options})")
        if self.trainer is None:
            return self._loader("train", sampler)
        if getattr(self.trainer, "overfit_batches", 0):
            raise InputError("trainer.overfit_batches: PairData keeps its own order; use trainer.limit_train_batches")
        fingerprint, files = self.fingerprint(rows.examples, world), {HISTORIES: self.histories}
        return self._loader("train", self._position.sampler(sampler, self.trainer, fingerprint, files))

    def val_dataloader(self) -> BatchLoader | list[Batch]:
        """Loader of every row once; an empty list where there is no row to validate on."""
        return self._evaluation("val") if self.rows["val"].keys else []

    def test_dataloader(self) -> BatchLoader:
        """Loader of every row once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> BatchLoader:
        """Loader of every row that is not done once, in the order of the manifests."""
        return self._evaluation("predict", bucket=False, shuffle=False, done=self.done)

    def _evaluation(self, split: Split, **options: Any) -> BatchLoader:
        rank, world = rank_and_world(self.trainer)
        options = {"bucket": self.bucket, "shuffle": True, "rank": rank, "world": world} | options
        return self._loader(split, EvalSampler(self._rows_of(split).keys, self.eval_batch_size, **options))

    def _rows_of(self, split: Split) -> DatasetIndex:
        rows = self.rows[split]
        if not rows.keys:
            folder = f", or rows whose split is {split} in data.root {self.root}" if self.root else ""
            raise NoRowsError(f"there is no row to {_PURPOSES[split]}: give data.{split} FILE{folder}")
        return rows

    def _loader(self, split: Split, sampler: Sampler[BatchRows]) -> BatchLoader:
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return BatchLoader(
            self._datasets[split],
            batch_size=None,  # the sampler draws whole batches, and the data set reads them
            sampler=sampler,
            collate_fn=identity,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=cuda,
            worker_init_fn=leave_signals_to_main,
            generator=torch.Generator().manual_seed(self.seed),  # a loader without one draws from torch's own
        )

    # ------------------------------------------------------------------------------------- checkpoint and saved model

    def fingerprint(self, examples: list[Example], world: int) -> dict[str, Any]:
        """Plain data that changes whenever a training in ``world`` processes would have other batches."""
        return order_fingerprint(examples, world, {name: getattr(self, name) for name in _ORDER_OPTIONS})

    def state_dict(self) -> dict[str, Any]:
        """Position of the run in its data; see ``mmprefix.data.resume``."""
        return self._position.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training go on where ``state_dict`` was saved."""
        self._position.load_state_dict(state_dict)

    def source_names(self) -> list[str]:
        """Names of the manifests to train, validate and test on, or the folder that they are in; for the model card."""
        files = [Path(file).name for split in ("train", "val", "test") for file in self.manifests[split] or []]
        return files or [self.root or ""]

    def task_settings(self) -> dict[str, Any]:
        """Settings of a saved model that follow from this data, in the form of its YAML file."""
        return {}

    def teardown(self, stage: str) -> None:
        """Log the number of rows that could not be decoded, where such rows were to be skipped."""
        datasets = [self._datasets[split] for split in _STAGES[stage] if split in self._datasets]
        bad = sum(int(dataset.bad.sum()) for dataset in datasets)
        if bad:
            log.warning("rows left out because their files could not be decoded: %d", bad)


def attached_data(trainer: Trainer) -> PairData | None:
    """PairData that ``trainer`` runs on; None where it runs on other data."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, PairData) else None
