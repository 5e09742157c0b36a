"""Ranges of the numbers that a model reads, taken from its training data before the first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from mmprefix.data.collate import pad_media
from mmprefix.data.manifest import Example
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.mappers.minmax import MinMax
from mmprefix.model import PrefixLM
from mmprefix.types import to_list

log = logging.getLogger(__name__)


@torch.no_grad()
def fit_input_ranges(model: PrefixLM, examples: Sequence[Example], *, skip_bad: bool = False) -> None:
    """Show each ``MinMax`` mapper that does not know its range yet the inputs of ``examples``, the rows to train on.

    Rows that cannot be read are left out with ``skip_bad``. Raises InputError for one of them otherwise, and where no
    row has that input.
    """
    for name, mapper in model.mappers.items():
        unknown = [part for part in mapper.modules() if isinstance(part, MinMax) and not part.known]
        if not unknown:
            continue
        encoder, rows = model.encoder(name), [example for example in examples if name in example.inputs]
        for start in range(0, len(rows), 256):
            read = (_read(encoder, example, name, skip_bad) for example in rows[start : start + 256])
            values = [value for value in read if value is not None]
            if values:
                summaries = encoder(pad_media(values).to(unknown[0].low.device)).pooled
                for part in unknown:
                    part.observe(summaries)
        for part in unknown:
            if not part.known:
                raise InputError(f"model.branches.{name}: MinMax finds no row to train on that has {name}")
            log.info("%s: %d inputs lie between %s and %s", name, len(rows), _figures(part.low), _figures(part.high))


def _read(encoder: Encoder, example: Example, name: str, skip: bool) -> torch.Tensor | None:
    """Input of a row for ``encoder``; None where it cannot be read and is to be skipped."""
    ref = example.inputs[name]
    try:
        return encoder.preprocess(ref.source, ref.start, ref.end)
    except InputError as error:
        if skip:
            return None
        raise InputError(str(example.fault(str(error)))) from error


def _figures(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in to_list(values))
