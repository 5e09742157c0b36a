"""Filling of the feature store: each input is read and encoded once, by one of the processes that fill it.

The plan of batches follows from the inputs alone. A batch is therefore encoded with the same neighbours whoever does
it and however often the work was interrupted, and the store has the same bits in the end.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm import tqdm

from mmprefix.data.collate import identity, pad_media
from mmprefix.data.dataset import leave_signals_to_main
from mmprefix.encoders.base import Encoder, Preprocess
from mmprefix.errors import InputError
from mmprefix.features.claims import claiming, remove_dead_claims
from mmprefix.features.filling import (
    EncodeBatch,
    EncodedBatch,
    EncodeRequest,
    PendingBatches,
    ShardWriter,
    is_full,
    plan,
)
from mmprefix.features.store import FeatureStore
from mmprefix.interrupt import HeldSignals, Stopped, advice_if_stopped, hold_stop_signals, stop_signals
from mmprefix.types import FeatureRow, Features, Media

SECONDS, BYTES = 30.0, 1 << 27  # features are written after so long, or so many bytes: no more than that can be lost


class LoadedBatch(NamedTuple):
    """Inputs of a batch that could be read, and the faults of the others, by key."""

    name: str
    keys: list[bytes]
    media: Media | None
    faults: dict[bytes, str]


class BatchReader(Dataset[LoadedBatch]):
    """Reader of the files of a batch, in a loader's worker."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __getitem__(self, batch: EncodeBatch) -> LoadedBatch:
        values: dict[bytes, Tensor] = {}
        faults: dict[bytes, str] = {}
        with stop_signals() if get_worker_info() is None else nullcontext():
            for request in batch.inputs:
                try:
                    values[request.key] = self.preprocess(request.source, request.start, request.end)
                except InputError as error:
                    faults[request.key] = str(error)
        return LoadedBatch(batch.name, list(values), pad_media(list(values.values())) if values else None, faults)


class EncodeModule(LightningModule):
    """Encodes batches, and publishes their features every now and then; ``held`` says when to stop."""

    def __init__(
        self, encoder: Encoder, writer: ShardWriter, held: HeldSignals, *, progress: Any, bad: dict[bytes, str]
    ) -> None:
        super().__init__()
        self.encoder, self.writer, self.held, self.progress, self.bad = encoder, writer, held, progress, bad
        self.last_flush = time.monotonic()

    def transfer_batch_to_device(self, batch: LoadedBatch, device: Any, dataloader_idx: int) -> LoadedBatch:
        return batch._replace(media=None if batch.media is None else batch.media.to(device))

    def predict_step(self, batch: LoadedBatch, index: int) -> None:
        self.held.check()
        rows: list[FeatureRow] = []
        if batch.media is not None:
            with stop_signals():  # a batch may take long
                rows = to_feature_rows(self.encoder(batch.media), self.writer.store)
        self.bad |= batch.faults
        self.writer.keep(EncodedBatch(batch.name, batch.keys, rows))
        self.progress.update(len(batch.keys) + len(batch.faults))
        if self.writer.bytes >= BYTES or time.monotonic() - self.last_flush >= SECONDS:
            self.flush()

    def on_predict_end(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Publish the features since the last flush."""
        self.writer.publish()
        self.last_flush = time.monotonic()


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

    Several processes, those of ``trainer`` and any others, share the work. When this returns all of it is done. A stop
    signal ends it with what is encoded in the store. Raises InputError for a ``trainer`` that would copy this process.
    """
    batches, bad = plan(requests, batch_size), dict[bytes, str]()
    total, several = sum(map(len, batches)), trainer.world_size > 1
    if trainer.is_global_zero:
        store.remove_damaged()
    copied = copies_of_this_process(trainer)
    if (copied or not several) and is_full(store, batches):
        remove_dead_claims(store.folder)
        return bad  # also from a disk that cannot be written
    if copied:
        raise InputError(
            f"trainer.strategy: processes of ddp_{copied} cannot fill a feature store; give ddp, or fill the store "
            "first by mmprefix encode with ddp: a full one is read with any strategy"
        )
    leave_signals_alone(trainer)
    advice = f"the features so far are in {store.folder}; the same command goes on"
    with advice_if_stopped(advice), claiming(store.folder) as claims:
        pending, writer = PendingBatches(store, batches, claims, bad), ShardWriter(store, claims)
        reader = BatchReader(encoder.preprocess)
        again = several  # all processes of a trainer make the same passes
        while pending.wait(60.0 if several else float("inf")) or again:
            done = total - pending.count()
            with (
                tqdm(total=total, initial=done, unit="input", desc="encoding", disable=trainer.global_rank > 0) as bar,
                publishing_when_stopped(writer, trainer),
                hold_stop_signals() as held,
            ):
                module = EncodeModule(encoder, writer, held, progress=bar, bad=bad)
                loader = DataLoader(
                    reader,
                    batch_size=None,
                    sampler=pending,
                    num_workers=workers,
                    collate_fn=identity,
                    worker_init_fn=leave_signals_to_main,
                )
                trainer.predict(module, loader, return_predictions=False)
            again = several and trainer.strategy.reduce_boolean_decision(pending.count() > 0, all=False)
    store.refresh_if_changed()
    return bad


def copies_of_this_process(trainer: Trainer) -> str:
    """How ``trainer`` copies this process for its others, fork or spawn; empty where it copies none.

    Copies have the claims of this process, whose locks are not theirs, and cannot return the faults of inputs.
    """
    launcher = trainer.strategy.launcher
    return launcher._start_method if isinstance(launcher, _MultiProcessingLauncher) else ""


@contextmanager
def publishing_when_stopped(writer: ShardWriter, trainer: Trainer) -> Generator[None, None, None]:
    """Let a stop signal reach the processes that ``trainer`` has started, and publish what this one has encoded."""
    try:
        yield
    except Stopped as stop:
        launched: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        processes = launched.copy()
        launched.clear()  # Lightning kills all of them, and this one, where one of them ends
        for process in processes:
            process.send_signal(stop.signal)
        writer.publish()
        raise


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from handling SIGTERM: it waits in the handler for the other processes, which may be at work."""
    cast(Any, trainer)._signal_connector.register_signal_handlers = lambda: None
