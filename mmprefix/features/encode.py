"""Filling of the feature store: each input is read and encoded once, by one of the processes that fill it.

The plan of batches follows from the inputs alone. A batch is therefore encoded with the same neighbours whoever does
it and however often the work was interrupted, and the store has the same bits in the end.
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

from mmprefix.data.collate import identity, pad_media
from mmprefix.encoders.base import Encoder, Preprocess
from mmprefix.errors import InputError
from mmprefix.features.claims import Claims, claiming
from mmprefix.features.store import FeatureStore
from mmprefix.media.source import Source, name_of
from mmprefix.types import FeatureRow, Features, Media

log = logging.getLogger(__name__)

SECONDS, BYTES = 30.0, 1 << 27  # features are written after so long, or so many bytes: no more than that can be lost


class EncodeRequest(NamedTuple):
    """An input to encode: its key in the store, its source and span in seconds, and its length for sorting."""

    key: bytes
    source: Source
    start: float
    end: float | None
    length: float


class EncodeBatch(NamedTuple):
    """Inputs of a batch that are not in the store yet, and the name of the batch among the claims."""

    name: str
    inputs: list[EncodeRequest]


class LoadedBatch(NamedTuple):
    """Inputs of a batch that could be read, and the faults of the others, by key."""

    name: str
    keys: list[bytes]
    media: Media | None
    faults: dict[bytes, str]


def plan(requests: Sequence[EncodeRequest], batch_size: int) -> list[list[EncodeRequest]]:
    """Batches of inputs of like length, each input once; the same for the same inputs in any order."""
    once = {request.key: request for request in sorted(requests, key=lambda request: name_of(request.source))}
    order = sorted(once.values(), key=lambda request: (request.length, request.key))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class PendingBatches(Sampler[EncodeBatch]):
    """Batches that are neither in the store nor taken by another process; each is claimed as it is drawn.

    ``bad`` are the faults of the inputs that cannot be read, by key.
    """

    def __init__(
        self, store: FeatureStore, batches: Sequence[list[EncodeRequest]], claims: Claims, bad: dict[bytes, str]
    ) -> None:
        self.store, self.batches, self.claims, self.bad = store, batches, claims, bad

    def left(self, batch: Sequence[EncodeRequest]) -> list[EncodeRequest]:
        """Inputs of ``batch`` that are still to be encoded."""
        return [request for request in batch if request.key not in self.store and request.key not in self.bad]

    def count(self) -> int:
        """Number of inputs that are still to be encoded."""
        return sum(len(self.left(batch)) for batch in self.batches)

    def __iter__(self) -> Iterator[EncodeBatch]:
        for batch in self.batches:
            name = _name(batch)
            if self.left(batch) and self.claims.take(name, lambda batch=batch: self._done(batch)):
                yield EncodeBatch(name, self.left(batch))

    def _done(self, batch: Sequence[EncodeRequest]) -> bool:
        self.store.refresh_if_changed()
        return not self.left(batch)


class BatchReader(Dataset[LoadedBatch]):
    """Reader of the files of a batch, in a loader's worker."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __getitem__(self, batch: EncodeBatch) -> LoadedBatch:
        values: dict[bytes, Tensor] = {}
        faults: dict[bytes, str] = {}
        for request in batch.inputs:
            try:
                values[request.key] = self.preprocess(request.source, request.start, request.end)
            except InputError as error:
                faults[request.key] = str(error)
        return LoadedBatch(batch.name, list(values), pad_media(list(values.values())) if values else None, faults)


class EncodeModule(LightningModule):
    """Encodes batches, and writes their features to the store every now and then."""

    def __init__(
        self, encoder: Encoder, store: FeatureStore, claims: Claims, *, progress: Any, bad: dict[bytes, str]
    ) -> None:
        super().__init__()
        self.encoder, self.store, self.claims, self.progress, self.bad = encoder, store, claims, progress, bad
        self.keys: list[bytes] = []
        self.entries: list[FeatureRow] = []
        self.names: list[str] = []
        self.bytes, self.last_flush, self.shards = 0, time.monotonic(), 0

    def transfer_batch_to_device(self, batch: LoadedBatch, device: Any, dataloader_idx: int) -> LoadedBatch:
        return batch._replace(media=None if batch.media is None else batch.media.to(device))

    def predict_step(self, batch: LoadedBatch, index: int) -> None:
        self.bad |= batch.faults
        self.names.append(batch.name)
        if batch.media is not None:
            self.keys += batch.keys
            self.entries += to_feature_rows(self.encoder(batch.media), self.store)
            self.bytes += sum(part.nbytes for entry in self.entries[-len(batch.keys) :] for part in entry)
        self.progress.update(len(batch.keys) + len(batch.faults))
        if self.bytes >= BYTES or time.monotonic() - self.last_flush >= SECONDS:
            self.flush()

    def on_predict_end(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Write the features since the last flush; only then may others learn that the work is done."""
        if self.keys:
            self.store.add(f"{self.claims.name}-{self.shards:05}", self.keys, self.entries)
            self.keys, self.entries, self.bytes = [], [], 0
            self.shards += 1
            self.store.refresh_if_changed()
        self.claims.release(self.names)
        self.names, self.last_flush = [], time.monotonic()


def to_feature_rows(features: Features, store: FeatureStore) -> list[FeatureRow]:
    """Features of B inputs → B entries without padding, in the store's dtype, in main memory."""
    frames, mask, pooled = (part.cpu() for part in (features.frames.to(store.dtype), features.mask, features.pooled))
    pooled = pooled.to(store.dtype)
    if not store.description["widths"][0]:  # frames are not kept
        frames, mask = frames[:, :0, :0], mask[:, :0]
    return [FeatureRow(frames[b, mask[b]], pooled[b]) for b in range(len(mask))]


def fill_store(
    store: FeatureStore,
    encoder: Encoder,
    requests: Sequence[EncodeRequest],
    trainer: Trainer,
    *,
    batch_size: int,
    workers: int,
) -> dict[bytes, str]:
    """Encode all ``requests`` that are not in the store; returns the faults of inputs that cannot be read, by key.

    Several processes, those of ``trainer`` and any others, share the work. When this returns all of it is done.
    """
    batches, bad = plan(requests, batch_size), dict[bytes, str]()
    total = sum(map(len, batches))
    if trainer.is_global_zero:
        store.remove_damaged()
    with claiming(store.folder) as claims:
        pending = PendingBatches(store, batches, claims, bad)
        reader = BatchReader(encoder.preprocess)
        left, again = pending.count(), trainer.world_size > 1  # all processes of a trainer make the same passes
        while left or again:
            done = total - left
            with tqdm(total=total, initial=done, unit="input", desc="encoding", disable=trainer.global_rank > 0) as bar:
                module = EncodeModule(encoder, store, claims, progress=bar, bad=bad)
                loader = DataLoader(reader, batch_size=None, sampler=pending, num_workers=workers, collate_fn=identity)
                trainer.predict(module, loader, return_predictions=False)
            store.refresh_if_changed()
            before, left = left, pending.count()
            if left == before:
                time.sleep(0.5)  # other processes have claimed the rest
            again = trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(left > 0, all=False)
    store.refresh_if_changed()
    return bad


def _name(batch: Sequence[EncodeRequest]) -> str:
    return hashlib.sha256(b"".join(request.key for request in batch)).hexdigest()
