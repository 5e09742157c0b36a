"""Rows → tensors → Batch: what a loader's workers do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmprefix.data.collate import Sample, collate, draw_captions
from mmprefix.data.manifest import Example
from mmprefix.data.samplers import BatchRows
from mmprefix.errors import InputError
from mmprefix.media.source import Source
from mmprefix.types import Batch, FeatureRow

log = logging.getLogger(__name__)

SampleQuestions = Callable[[Example, np.random.Generator], list[tuple[str, str]]]
LoadInput = Callable[
    [Source, float, float | None], Tensor | FeatureRow
]  # reads an input, or knows what was found in it


class ManifestDataset(Dataset[Any]):
    """``examples`` as batches: indexed by a Draw, it reads its rows and gives a Batch, or an InputError instead of it.

    An error is given, not raised, because a loader would bury its one line in a worker's traceback. With ``skip_bad``
    rows that cannot be read are left out; ``bad`` (one flag a row, shared with the workers) says which. Of the captions
    of a row ``max_captions`` are drawn anew each epoch, and so is one of its contexts.

    With ``asks`` targets are the answers to questions about the row, drawn anew each epoch: it is given the row and a
    generator, and gives pairs. Unless it is a ``training`` all epochs are the first.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        preprocess: Mapping[str, LoadInput],
        prompt: str = "",
        max_captions: int | None = None,
        seed: int = 0,
        skip_bad: bool = False,
        asks: SampleQuestions | None = None,
        training: bool = True,
    ) -> None:
        self.asks, self.training = asks, training
        self.examples, self.preprocess, self.prompt = examples, dict(preprocess), prompt
        self.max_captions, self.seed, self.skip_bad = max_captions, seed, skip_bad
        self.bad = torch.zeros(len(examples), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, draw: BatchRows) -> Batch | InputError:
        try:
            samples = [sample for row in draw.rows if (sample := self._read(row, draw.epoch))]
        except InputError as error:
            return error
        if samples:
            return collate(samples)
        first = self.examples[draw.rows[0]]
        return InputError(f"{first.file}:{first.line}: none of the {len(draw.rows)} rows of a batch can be read")

    def _read(self, row: int, epoch: int) -> Sample | None:
        if self.bad[row]:
            return None
        example = self.examples[row]
        items = {name: example.inputs[name] for name in self.preprocess if name in example.inputs}
        try:
            found = {name: self.preprocess[name](item.source, item.start, item.end) for name, item in items.items()}
        except InputError as error:
            fault = example.fault(str(error))
            if not self.skip_bad:
                raise InputError(str(fault)) from error
            self.bad[row] = True
            log.warning("left out: %s", fault)
            return None
        prompt = self.prompt if example.prompt is None else example.prompt
        questions, targets = self._texts(row, epoch if self.training else 0)
        place = next((item.path for item in items.values() if item.path), example.places[-1])
        return Sample(found, prompt, targets, self._context(row, epoch), example.id, place, questions)

    def _context(self, row: int, epoch: int) -> str:
        example = self.examples[row]
        texts = [example.context, *example.contexts]
        if not self.training or len(texts) == 1:
            return texts[0]
        return texts[int(np.random.default_rng([self.seed, epoch, row, 1]).integers(len(texts)))]

    def _texts(self, row: int, epoch: int) -> tuple[list[str] | None, list[str]]:
        """Questions (None where targets are captions) and targets."""
        if self.asks is None:
            return None, self._captions(row, epoch)
        pairs = self.asks(self.examples[row], np.random.default_rng([self.seed, epoch, row]))
        return [question for question, _ in pairs], [answer for _, answer in pairs]

    def _captions(self, row: int, epoch: int) -> list[str]:
        return draw_captions(self.examples[row].captions, self.max_captions, [self.seed, epoch, row])


class BatchLoader(DataLoader[Any]):
    """A loader of whole batches that raises the InputError a worker gives back.

    It answers to ``state_dict`` because Lightning warns of lost batches at any loader that does not; the place in the
    data is PairData's to keep.
    """

    def __iter__(self) -> Any:
        return _raising(super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


def _raising(batches: Iterator[Any]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch
