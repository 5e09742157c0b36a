"""Rows of manifests → Batch, read in the workers of a loader."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmprefix.data.collate import collate
from mmprefix.data.manifest import Example
from mmprefix.data.model_inputs import LoadInput
from mmprefix.data.sample import Sample, SampleOptions, sample_of_row
from mmprefix.data.samplers import BatchRows
from mmprefix.errors import InputError
from mmprefix.types import Batch

log = logging.getLogger(__name__)


class ManifestDataset(Dataset[Any]):
    """Batches of ``examples``: indexed by a BatchRows, it reads the rows and returns a Batch or an InputError.

    An error is returned, not raised, because a loader would bury its one line in a worker's traceback. ``BatchLoader``
    raises it.

    Args:
        examples: rows of the manifests.
        load: reads one input, by branch name.
        options: what is drawn for each row and epoch.
        skip_bad: leave out rows that cannot be read. ``bad`` (one flag a row, in memory shared with the workers) marks
            them.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        load: Mapping[str, LoadInput],
        options: SampleOptions = SampleOptions(),  # noqa: B008 (frozen)
        *,
        skip_bad: bool = False,
    ) -> None:
        self.examples, self.load, self.options, self.skip_bad = examples, dict(load), options, skip_bad
        self.bad: Tensor = torch.zeros(len(examples), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, batch: BatchRows) -> Batch | InputError:
        try:
            samples = [sample for row in batch.rows if (sample := self._read(row, batch.epoch))]
        except InputError as error:
            return error
        if samples:
            return collate(samples)
        first = self.examples[batch.rows[0]]
        return InputError(f"{first.file}:{first.line}: none of the {len(batch.rows)} rows of a batch can be read")

    def _read(self, row: int, epoch: int) -> Sample | None:
        if self.bad[row]:
            return None
        example = self.examples[row]
        refs = {name: example.inputs[name] for name in self.load if name in example.inputs}
        try:
            inputs = {name: self.load[name](ref.source, ref.start, ref.end) for name, ref in refs.items()}
        except InputError as error:
            fault = example.fault(str(error))
            if not self.skip_bad:
                raise InputError(str(fault)) from error
            self.bad[row] = True
            log.warning("left out: %s", fault)
            return None
        source = next((ref.path for ref in refs.values() if ref.path), example.sources[-1])
        return sample_of_row(example, inputs, self.options, row=row, epoch=epoch, source=source)


class BatchLoader(DataLoader[Any]):
    """Loader of whole batches; raises the InputError that a worker returns.

    It has ``state_dict`` because Lightning warns of lost batches at any loader without one. The position in the data is
    kept by ``mmprefix.data.resume``.
    """

    def __iter__(self) -> Any:
        return _raise_errors(super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


def leave_signals_to_main(worker: int) -> None:
    """Let a loader's worker read on when Ctrl-C or a scheduler signals all processes: the main one stops it in time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _raise_errors(batches: Iterator[Any]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch
