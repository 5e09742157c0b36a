"""Summaries of many inputs by a frozen encoder, each computed once and kept in the feature store."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.features.encode import fill_store
from mmprefix.features.filling import EncodeRequest
from mmprefix.features.keys import content_hashes, feature_key
from mmprefix.features.store import FeatureStore, store_description
from mmprefix.media.source import Source


def summaries(encoder: Encoder, inputs: Sequence[Source], cache: Path, batch_size: int = 16) -> Tensor:
    """Summaries (N G) of ``inputs``, from the store below ``cache`` or computed and added to it.

    Equal inputs are encoded once. Raises InputError for an input that cannot be read.
    """
    store = FeatureStore(cache, store_description(encoder, "float32", frames=False))
    hashes = content_hashes(inputs, cache / "inputs.sqlite")
    keys = [feature_key(hashes[source]) for source in inputs]
    requests = [EncodeRequest(key, source, 0.0, None, 0.0) for key, source in zip(keys, inputs, strict=True)]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=".*(does not have many workers|GPU available but not used|LeafSpec|predict returned None).*",
        )
        trainer = Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        faults = fill_store(store, encoder, requests, trainer, batch_size=batch_size, workers=0)
    if faults:
        raise InputError(next(iter(faults.values())))
    return torch.stack([store[key].pooled.float() for key in keys])
