"""Knowledge that mappers need of their inputs, taken from the training data, before the first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmprefix.data.collate import collate_inputs
from mmprefix.data.manifest import Example
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.errors import InputError
from mmprefix.mappers.observer import Observer, Starter
from mmprefix.model import PrefixLM
from mmprefix.types import FeatureRow, Features

log = logging.getLogger(__name__)
_AT_ONCE = 16  # inputs that are encoded together


@torch.no_grad()
def show_training_data(
    model: PrefixLM, examples: Sequence[Example], inputs: ModelInputs, *, skip_bad: bool = False
) -> None:
    """Show each ``Observer`` among the mappers the features of ``examples``, unless it knows its data by now.

    Those that observe again (users' rows) are shown them whatever they know.

    ``inputs`` reads them, from files or a feature store. Mappers that start from a text alone get it first. Rows that
    cannot be read are left out with ``skip_bad``. Raises InputError for one of them otherwise, and where no row has
    that input.
    """
    for part in _without_data(model):
        part.begin(model.decoder)
    for name, mapper in model.mappers.items():
        unknown = _unknown(mapper)
        eager = [*unknown, *_again(mapper)]
        if not eager:
            continue
        rows = _spread([example for example in examples if name in example.inputs], eager)
        for start in range(0, len(rows), _AT_ONCE):
            read = (_read(inputs, example, name, skip_bad) for example in rows[start : start + _AT_ONCE])
            values = [value for value in read if value is not None]
            if values:
                features = _features(model, name, values)
                for part in eager:
                    part.observe(features)
        for part in unknown:
            part.begin(model.decoder)
            if not part.known:
                raise InputError(
                    f"model.branches.{name}: {type(part).__name__} finds no row to train on that has {name}"
                )
        for part in eager:
            log.info("%s: %d inputs: %s", name, len(rows), part.observed())


def _without_data(model: PrefixLM) -> list[Starter]:
    """Parts that begin before any data are read: those of the task's prefix, and those that start from a text alone."""
    starters = [part for part in model.modules() if isinstance(part, Starter) and not isinstance(part, Observer)]
    return [*_unknown(model.task_prefix), *(part for part in starters if not part.known)]


def _unknown(mapper: nn.Module | None) -> list[Observer]:
    """Observers in ``mapper`` that do not know its data yet."""
    parts = [] if mapper is None else mapper.modules()
    return [part for part in parts if isinstance(part, Observer) and not part.known]


def _again(mapper: nn.Module) -> list[Observer]:
    """Observers in ``mapper`` that know some data, and want those of this training too."""
    return [part for part in mapper.modules() if isinstance(part, Observer) and part.known and part.observes_again]


def _spread(rows: list[Example], observers: list[Observer]) -> list[Example]:
    """All rows, or as many as every observer wants, evenly spread."""
    limits = [len(rows) if part.most is None else part.most for part in observers]
    count = min(len(rows), max(limits))
    return [rows[number * len(rows) // count] for number in range(count)]


def _features(model: PrefixLM, name: str, values: Sequence[Tensor | FeatureRow]) -> Features:
    device = next(model.decoder.parameters()).device
    return model.features({name: collate_inputs(values).to(device)})[name].to_dtype(torch.float32)


def _read(inputs: ModelInputs, example: Example, name: str, skip: bool) -> Tensor | FeatureRow | None:
    """Input of a row; None where it cannot be read and is to be skipped."""
    ref = example.inputs[name]
    try:
        return inputs.load[name](ref.source, ref.start, ref.end)
    except InputError as error:
        if skip:
            return None
        raise InputError(str(example.fault(str(error)))) from error
