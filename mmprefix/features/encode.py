"""Filling the feature store: each input is read and encoded once, by one of the processes that fill it.

The plan of batches follows from the inputs alone. So a batch is encoded with the same neighbours whoever does it and
however often the work was broken off, and the store has the same bits in the end.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from mmprefix.data.collate import pad_media
from mmprefix.encoders.base import Encoder, Preprocess
from mmprefix.errors import InputError
from mmprefix.features.claims import Claims, claiming
from mmprefix.features.store import FeatureStore
from mmprefix.media.source import Source, name_of
from mmprefix.types import FeatureRow, Features, Media

log = logging.getLogger(__name__)

SECONDS, BYTES = 30.0, 1 << 27  # after so long, or so much, what was found is written: no more than that can be lost


class EncodeRequest(NamedTuple):
    """An input whose features are wanted: its key, where it is, and a number by which those of like length are near."""

    key: bytes
    source: Source
    start: float
    end: float | None
    length: float


class EncodeBatch(NamedTuple):
    """What is still wanted of one batch, and what the batch is called among those that share the work."""

    name: str
    inputs: list[EncodeRequest]


class LoadedBatch(NamedTuple):
    """The inputs of a piece of work that could be read, and what is wrong with the others."""

    work: str
    keys: list[bytes]
    media: Media | None
    faults: dict[bytes, str]


def plan(wanted: Sequence[EncodeRequest], batch_size: int) -> list[list[EncodeRequest]]:
    """Batches of inputs of like length, each input once; the same for the same inputs in any order."""
    once = {one.key: one for one in sorted(wanted, key=lambda one: name_of(one.source))}
    order = sorted(once.values(), key=lambda one: (one.length, one.key))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


class PendingBatches(Sampler[EncodeBatch]):
    """The batches that are not in the store and that no other process has taken, each taken as it is drawn."""

    def __init__(
        self, store: FeatureStore, batches: Sequence[list[EncodeRequest]], claims: Claims, bad: dict[bytes, str]
    ) -> None:
        self.store, self.batches, self.claims, self.bad = store, batches, claims, bad

    def left(self, batch: Sequence[EncodeRequest]) -> list[EncodeRequest]:
        """What is still wanted of a batch."""
        return [one for one in batch if one.key not in self.store and one.key not in self.bad]

    def count(self) -> int:
        """How many inputs are still wanted."""
        return sum(len(self.left(batch)) for batch in self.batches)

    def __iter__(self) -> Iterator[EncodeBatch]:
        for batch in self.batches:
            name = _called(batch)
            if self.left(batch) and self.claims.take(name, lambda batch=batch: self._done(batch)):
                yield EncodeBatch(name, self.left(batch))

    def _done(self, batch: Sequence[EncodeRequest]) -> bool:
        self.store.refresh_if_changed()
        return not self.left(batch)


class BatchReader(Dataset[LoadedBatch]):
    """Reads the files of a batch, in a loader's worker."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __getitem__(self, work: EncodeBatch) -> LoadedBatch:
        values: dict[bytes, Tensor] = {}
        faults: dict[bytes, str] = {}
        for one in work.inputs:
            try:
                values[one.key] = self.preprocess(one.source, one.start, one.end)
            except InputError as error:
                faults[one.key] = str(error)
        return LoadedBatch(work.name, list(values), pad_media(list(values.values())) if values else None, faults)


class EncodeModule(LightningModule):
    """Encodes what it is given, and puts it into the store every now and then."""

    def __init__(self, encoder: Encoder, store: FeatureStore, claims: Claims, bar: Any, bad: dict[bytes, str]) -> None:
        super().__init__()
        self.encoder, self.store, self.claims, self.bar, self.bad = encoder, store, claims, bar, bad
        self.keys: list[bytes] = []
        self.entries: list[FeatureRow] = []
        self.works: list[str] = []
        self.bytes, self.began, self.written = 0, time.monotonic(), 0

    def transfer_batch_to_device(self, batch: LoadedBatch, device: Any, dataloader_idx: int) -> LoadedBatch:
        return batch._replace(media=None if batch.media is None else batch.media.to(device))

    def predict_step(self, batch: LoadedBatch, index: int) -> None:
        self.bad |= batch.faults
        self.works.append(batch.work)
        if batch.media is not None:
            found: Features = self.encoder(batch.media)
            self.keys += batch.keys
            self.entries += to_feature_rows(found, self.store)
            self.bytes += sum(part.nbytes for entry in self.entries[-len(batch.keys) :] for part in entry)
        self.bar.update(len(batch.keys) + len(batch.faults))
        if self.bytes >= BYTES or time.monotonic() - self.began >= SECONDS:
            self.flush()

    def on_predict_end(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Writes what was found since the last time; only then may others know that it need not be done again."""
        if self.keys:
            self.store.add(f"{self.claims.name}-{self.written:05}", self.keys, self.entries)
            self.keys, self.entries, self.bytes = [], [], 0
            self.written += 1
            self.store.refresh_if_changed()
        self.claims.release(self.works)
        self.works, self.began = [], time.monotonic()


def to_feature_rows(found: Features, store: FeatureStore) -> list[FeatureRow]:
    """Features of B inputs → an entry each, without padding, of the store's type, in main memory."""
    frames, mask, pooled = (part.cpu() for part in (found.frames.to(store.dtype), found.mask, found.pooled))
    pooled = pooled.to(store.dtype)
    if not store.description["widths"][0]:  # frames are not kept
        frames, mask = frames[:, :0, :0], mask[:, :0]
    return [FeatureRow(frames[b, mask[b]], pooled[b]) for b in range(len(mask))]


def fill_store(
    store: FeatureStore,
    encoder: Encoder,
    wanted: Sequence[EncodeRequest],
    trainer: Trainer,
    batch_size: int,
    workers: int,
) -> dict[bytes, str]:
    """Encodes all that is wanted and not in the store; returns what is wrong with the inputs that cannot be read.

    Several processes, those of ``trainer`` and any others, share the work. When this returns all of it is done.
    """
    batches, bad = plan(wanted, batch_size), dict[bytes, str]()
    count = sum(map(len, batches))
    if trainer.is_global_zero:
        store.remove_damaged()
    with claiming(store.folder) as claims:
        missing = PendingBatches(store, batches, claims, bad)
        left, again = missing.count(), trainer.world_size > 1  # all processes of a trainer make the same passes
        while left or again:
            bar = tqdm(
                total=count, initial=count - left, unit="input", desc="encoding", disable=trainer.global_rank > 0
            )
            with bar:
                module = EncodeModule(encoder, store, claims, bar, bad)
                loader = DataLoader(
                    BatchReader(encoder.preprocess),
                    batch_size=None,
                    sampler=missing,
                    num_workers=workers,
                    collate_fn=_same,
                )
                trainer.predict(module, loader, return_predictions=False)
            store.refresh_if_changed()
            before, left = left, missing.count()
            if left == before:
                time.sleep(0.5)  # what is left is in the hands of others
            again = trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(left > 0, all=False)
    store.refresh_if_changed()
    return bad


def _called(batch: Sequence[EncodeRequest]) -> str:
    return hashlib.sha256(b"".join(one.key for one in batch)).hexdigest()


def _same(batch: Any) -> Any:
    return batch
