"""Training on captions alone: in training an input is a caption, which is written again; elsewhere it is a file.

For an encoder that gives a text and a picture vectors in one space (``mmprefix.encoders.aligned.Aligned``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mmprefix.data.index import DatasetIndex
from mmprefix.data.manifest import Example, InputRef
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import PairData
from mmprefix.data.samplers import RowKey
from mmprefix.data.sources import Split
from mmprefix.errors import InputError


class CaptionsOnly(PairData):
    """Rows of ``PairData``, but each training caption is a row of its own, and its only input.

    The files that training rows name are not opened, and rows need none. Val and test rows are read as they are.

    Args:
        branch: the branch that reads the captions in the place of files.
        more: options of ``PairData``.
    """

    def __init__(self, *, branch: str = "image", **more: Any) -> None:
        super().__init__(**more)
        self.branch = branch

    def read_rows(self, split: Split, inputs: ModelInputs) -> DatasetIndex:
        """Rows of ``split`` that feed ``inputs``; in training one a caption."""
        if split != "train":
            return super().read_rows(split, inputs)
        if self.branch not in inputs.load:
            names = ", ".join(inputs.load)
            raise InputError(f"data.branch {self.branch!r}: is to read the captions; this model has {names}")
        index = super().read_rows(split, replace(inputs, load={}, kinds={}, captions_alone=True))
        examples = [row for example in index.examples for row in self._captions(example)]
        size = [len(row.captions[0]) for row in examples]
        if inputs.count_tokens is not None and self.max_tokens is not None:
            size = inputs.count_tokens([row.captions[0] for row in examples])
        keys = [RowKey(frozenset({self.branch}), 0.0, 1, tokens) for tokens in size]
        return DatasetIndex(examples, keys, index.faults)

    def _captions(self, example: Example) -> Iterator[Example]:
        several = len(example.captions) > 1
        for number, caption in enumerate(example.captions):
            name = f"{example.id}-{number}" if several else example.id
            yield replace(
                example, id=name, inputs={self.branch: InputRef("", texts=(caption,))}, captions=(caption,), lines=()
            )
