"""Fits of a tiny prefix on a few texts in memory: a task over a tiny decoder, batches, a silent trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.training.task import PrefixTask
from mmprefix.types import Batch

TEXTS = ("a dog barks", "rain falls on the roof", "the cat runs", "a bell rings twice")


def text_batch(texts: Sequence[str] = TEXTS, **more: Any) -> Batch:
    """Batch of prompts that name a place, each with one of ``texts`` as its target."""
    count = len(texts)
    fields = {"inputs": {}, "contexts": [""] * count, "ids": [str(n) for n in range(count)]}
    prompts, targets = [f"{n}:" for n in range(count)], [[text] for text in texts]
    return Batch(**{**fields, "prompts": prompts, "targets": targets, **more})


def prefix_task(
    decoder: CausalDecoder,
    prefix: Callable[[Sizes], Mapper] | None,
    *,
    rate: float = 0.05,
    kind: Callable[..., PrefixTask] = PrefixTask,
    **more: Any,
) -> PrefixTask:
    """Task that trains ``prefix`` before ``decoder`` by Adam at a constant ``rate``."""
    options: dict[str, Any] = {"branches": {}, "schedule": "constant", "warmup": 0, **more}
    torch.manual_seed(0)
    adam = lambda parameters: torch.optim.Adam(parameters, rate)  # noqa: E731
    return kind(decoder=decoder, prefix=prefix, optimizer=adam, **options)


def fit(
    task: PrefixTask, folder: Path, batches: Sequence[Batch], *callbacks: Callback, epochs: int = 1, **options: Any
) -> Trainer:
    """Train ``task`` on ``batches``, in their order, for ``epochs`` epochs on the CPU; ``options`` of the Trainer."""
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        default_root_dir=folder,
        max_epochs=epochs,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(task, DataLoader(cast(Any, list(batches)), batch_size=None))
    return trainer
