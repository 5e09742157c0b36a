"""``cache: DIR`` in a recipe: features of all inputs are written to a store first, and read from there in training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from mmprefix.data.index import DatasetIndex
from mmprefix.data.manifest import RowFault, listing
from mmprefix.data.pairs import PairData
from mmprefix.encoders.base import Encoder, part_read
from mmprefix.errors import InputError
from mmprefix.features.encode import fill_store
from mmprefix.features.filling import EncodeRequest
from mmprefix.features.keys import content_hashes, feature_key
from mmprefix.features.store import CachedInputs, FeatureStore, InputKey, store_description
from mmprefix.media.kinds import KINDS
from mmprefix.training.task import PrefixTask
from mmprefix.training.unfreeze import UnfreezeUntil

log = logging.getLogger(__name__)


def use_cache(
    task: PrefixTask,
    data: Any,
    stages: Sequence[str],
    *,
    root: str,
    dtype: str,
    trainer: Trainer,
    callbacks: Iterable[Any],
) -> dict[str, FeatureStore]:
    """Encode all inputs of ``stages`` (fit, test ...) that are not in the store yet, and let ``data`` read from there.

    ``trainer`` decides on devices and number of processes, ``root`` is the folder of the stores, ``dtype`` that of
    their numbers. Returns the store of each branch. Raises InputError where an encoder's features change during the
    training, and for inputs that cannot be read, unless such rows are to be left out.
    """
    if not isinstance(data, PairData):
        raise InputError(f"cache: is for data from manifests, not {type(data).__name__}; leave it out")
    encoders = {name: task.model.encoder(name) for name in task.model.encoders}
    encoders = {name: encoder for name, encoder in encoders.items() if KINDS[encoder.input_kind].cached}
    _refuse_changing(encoders, callbacks)
    inputs = data.inputs = task.inputs
    data.prepare_data()  # data that is made at the first start is encoded before the trainer would make it
    for stage in stages:
        data.setup(stage)
    rows = list(data.rows.values())
    stores: dict[str, FeatureStore] = {}
    for name, encoder in encoders.items():
        store = FeatureStore(root, store_description(encoder, dtype, task.model.reads_frames(name)))
        keys, requests = encode_requests(rows, name, encoder, Path(root).expanduser() / "inputs.sqlite")
        faults = fill_store(
            store, encoder, requests, trainer, batch_size=data.eval_batch_size, workers=data.num_workers
        )
        if faults and data.on_bad == "stop":
            _refuse_faults(rows, name, keys, faults)
        inputs = replace(inputs, load={**inputs.load, name: CachedInputs(store, keys, faults)})
        stores[name] = store
        if trainer.is_global_zero:
            log.info("cache: %d inputs of branch %s in %s", len(requests), name, store.folder)
    data.inputs = inputs
    return stores


def encode_requests(
    rows: Iterable[DatasetIndex], branch: str, encoder: Encoder, memory: Path
) -> tuple[dict[InputKey, bytes], list[EncodeRequest]]:
    """Key of every input of ``branch``, and the requests to encode them; ``memory`` is a file that keeps hashes."""
    lengths: dict[InputKey, float] = {}
    for index in rows:
        for example, key in zip(index.examples, index.keys, strict=True):
            if branch in example.inputs:
                ref = example.inputs[branch]
                lengths[ref.source, ref.start, ref.end] = key.seconds
    read = {source: part_read(encoder.preprocess, source) for source, _, _ in lengths}
    hashes = content_hashes(read.values(), memory)
    spans = {part: part[1:] if KINDS[encoder.input_kind].has_time else (0.0, None) for part in lengths}
    keys = {part: feature_key(hashes[read[part[0]]], *span) for part, span in spans.items()}
    return keys, [EncodeRequest(keys[part], *part, length) for part, length in lengths.items()]


def _refuse_changing(encoders: dict[str, Encoder], callbacks: Iterable[Any]) -> None:
    learning = [callback.branch for callback in callbacks if isinstance(callback, UnfreezeUntil)]
    for name, encoder in encoders.items():
        if encoder.saved or name in learning:
            raise InputError(
                f"cache: the encoder of branch {name} is trained too, or noisy (UnfreezeUntil), so its features "
                "change; give no cache, or leave that out"
            )


def _refuse_faults(
    rows: Iterable[DatasetIndex], branch: str, keys: dict[InputKey, bytes], faults: dict[bytes, str]
) -> None:
    bad: list[RowFault] = []
    for example in (example for index in rows for example in index.examples if branch in example.inputs):
        ref = example.inputs[branch]
        if fault := faults.get(keys[ref.source, ref.start, ref.end]):
            bad.append(example.fault(fault))
    count = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
    raise InputError(f"{count} (data.on_bad skip would leave them out)\n{listing(bad)}")
