"""Filling of a feature store by several processes at once, any of which may be killed at any step.

What holds, and why:

- No row is lost: a batch is done when its rows are in the store, and each process goes on until all batches are.
- No row is doubled: rows are published under the lock of the claims, and only those that are in no shard then.
- Every living process ends: it waits only for living ones (``mmprefix.features.claims``), and what they have taken
  comes into the store, or is free again when they end.
- Nothing of a killed process stays: a process that begins, ends, or finds the store full removes its claims.
- A shard is never overwritten: its name is its process's, which are told apart by 16 random digits, and is used once.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.utils.data import Sampler

from mmprefix.errors import InputError
from mmprefix.features.claims import Claims
from mmprefix.features.store import FeatureStore
from mmprefix.media.source import Source, Texts, name_of
from mmprefix.types import FeatureRow

log = logging.getLogger(__name__)


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


class EncodedBatch(NamedTuple):
    """Features of a batch by key, and the name of the batch among the claims."""

    name: str
    keys: list[bytes]
    rows: list[FeatureRow]


def plan(requests: Sequence[EncodeRequest], batch_size: int) -> list[list[EncodeRequest]]:
    """Batches of inputs of like length, each input once; the same for the same inputs in any order.

    Texts are in batches of their own: an encoder of files may read them too (``mmprefix.encoders.aligned``).
    """
    once = {request.key: request for request in sorted(requests, key=lambda request: name_of(request.source))}
    order = sorted(once.values(), key=lambda request: (request.length, request.key))
    texts = [request for request in order if isinstance(request.source, Texts)]
    files = [request for request in order if not isinstance(request.source, Texts)]
    return [part[start : start + batch_size] for part in (files, texts) for start in range(0, len(part), batch_size)]


def is_full(store: FeatureStore, batches: Sequence[Sequence[EncodeRequest]]) -> bool:
    """True where all inputs of ``batches`` are in the store."""
    return all(request.key in store for batch in batches for request in batch)


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

    def wait(self, seconds: float = float("inf")) -> bool:
        """Wait until a batch can be taken, or for so many ``seconds``; returns False where no input is left."""
        self.store.refresh_if_changed()
        names = self._names()
        until, waits = time.monotonic() + seconds, False
        while names and not self.claims.any_free(names) and time.monotonic() < until:
            if not waits:
                log.info("other processes encode the last %d batches; waiting for them", len(names))
            waits = True
            time.sleep(0.5)
            if self.store.refresh_if_changed():
                names = self._names()
        return bool(names)

    def _names(self) -> list[str]:
        return [_name(batch) for batch in self.batches if self.left(batch)]

    def _done(self, batch: Sequence[EncodeRequest]) -> bool:
        self.store.refresh_if_changed()
        return not self.left(batch)


class ShardWriter:
    """Features that this process has encoded, until they are published in the store as one shard."""

    def __init__(self, store: FeatureStore, claims: Claims) -> None:
        self.store, self.claims = store, claims
        self.batches: list[EncodedBatch] = []
        self.bytes = 0

    def keep(self, batch: EncodedBatch) -> None:
        """Keep the features of a batch for the next shard."""
        self.batches.append(batch)
        self.bytes += sum(part.nbytes for row in batch.rows for part in row)
        self.claims.renew()

    def publish(self) -> None:
        """Write what is kept; only then may others learn that the work is done.

        Raises InputError where the disk refuses, or does not keep what was written.
        """
        with self.claims.alone():
            self.store.list_anew()
            self.store.refresh_if_changed()
            rows = {key: row for batch in self.batches for key, row in zip(batch.keys, batch.rows, strict=True)}
            rows = {key: row for key, row in rows.items() if key not in self.store}
            if rows:
                file = self.store.add(self.claims.new_name(), list(rows), list(rows.values()))
                self.store.refresh_if_changed()
                if not all(key in self.store for key in rows):
                    raise InputError(f"{file}: was written, and cannot be read; does the disk keep what it is sent?")
            self.claims.release([batch.name for batch in self.batches])
            self.batches, self.bytes = [], 0


def _name(batch: Sequence[EncodeRequest]) -> str:
    return hashlib.sha256(b"".join(request.key for request in batch)).hexdigest()
