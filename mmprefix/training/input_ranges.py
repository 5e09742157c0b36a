"""The range of the numbers that a model is to read, looked up in its training data before the first step."""

from __future__ import annotations

import logging
from typing import Any

import torch

from mmprefix.data.collate import pad_media
from mmprefix.data.manifest import Example
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.mappers.minmax import MinMax
from mmprefix.model import PrefixLM

log = logging.getLogger(__name__)


@torch.no_grad()
def fit_input_ranges(model: PrefixLM, data: Any) -> None:
    """Shows each ``MinMax`` that does not know its range yet the inputs of all rows to train on.

    ``data`` is a ``PairData`` after ``setup``; rows that cannot be read are left out where it skips such. Raises
    InputError for one that it does not skip, and where no row has that input.
    """
    for name, mapper in model.mappers.items():
        unknown = [part for part in mapper.modules() if isinstance(part, MinMax) and not part.known]
        if not unknown:
            continue
        rows = getattr(data, "rows", {}).get("train")
        examples = [example for example in getattr(rows, "examples", []) if name in example.inputs]
        encoder, skip = model.encoder(name), getattr(data, "on_bad", "stop") == "skip"
        for start in range(0, len(examples), 256):
            read = (_read(encoder, example, name, skip) for example in examples[start : start + 256])
            values = [value for value in read if value is not None]
            if values:
                found = encoder(pad_media(values).to(unknown[0].low.device)).pooled
                for part in unknown:
                    part.observe(found)
        for part in unknown:
            if not part.known:
                raise InputError(f"model.branches.{name}: MinMax finds no row to train on that has {name}")
            log.info("%s: %d inputs lie between %s and %s", name, len(examples), _say(part.low), _say(part.high))


def _read(encoder: Encoder, example: Example, name: str, skip: bool) -> torch.Tensor | None:
    """What ``encoder`` reads of a row; None where that cannot be read and is to be skipped."""
    item = example.inputs[name]
    try:
        return encoder.preprocess(item.source, item.start, item.end)
    except InputError as error:
        if skip:
            return None
        raise InputError(str(example.fault(str(error)))) from error


def _say(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())
