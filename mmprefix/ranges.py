"""The range of the numbers that a model is to read, looked up in its training data before the first step."""

from __future__ import annotations

import logging
from typing import Any

import torch

from mmprefix.batching import stack
from mmprefix.mappers.minmax import MinMax
from mmprefix.model import PrefixLM
from mmprefix.types import InputError

log = logging.getLogger(__name__)


@torch.no_grad()
def learn_ranges(model: PrefixLM, data: Any) -> None:
    """Shows each ``MinMax`` that does not know its range yet the inputs of all rows to train on.

    ``data`` is a ``PairData`` after ``setup``. Raises InputError where there is none, or no row has that input.
    """
    for name, mapper in model.mappers.items():
        if not isinstance(mapper, MinMax) or mapper.known:
            continue
        rows = getattr(data, "rows", {}).get("train")
        items = [example.inputs[name] for example in getattr(rows, "examples", []) if name in example.inputs]
        if not items:
            raise InputError(f"model.branches.{name}: MinMax finds no row to train on that has {name}")
        encoder = model.encoder(name)
        for start in range(0, len(items), 256):
            values = [encoder.preprocess(item.source, item.start, item.end) for item in items[start : start + 256]]
            mapper.observe(encoder(stack(values).to(mapper.low.device)).pooled)
        log.info("%s: %d inputs lie between %s and %s", name, len(items), _say(mapper.low), _say(mapper.high))


def _say(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())
