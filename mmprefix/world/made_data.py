"""Base of the data modules over files that are made at the first start and reused afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprefix.data.pairs import PairData


class MadeData(PairData, ABC):
    """Base of data modules over manifests in a ``directory``, which a subclass makes in ``prepare_data``.

    Args:
        directory: folder of the manifests.
        names: those of the training, validation and test manifests, without their ending.
        batches: further options of ``PairData``.
    """

    def __init__(self, directory: str, names: Sequence[str], **batches: Any) -> None:
        train, val, test = ([str(Path(directory) / f"{name}.jsonl")] for name in names)
        super().__init__(train=train, val=val, test=test, **batches)
        self.directory = directory

    def source_names(self) -> list[str]:
        """Folder of the manifests, for the model card."""
        return [self.directory]

    @abstractmethod
    def prepare_data(self) -> None:
        """Make the files that are missing; Lightning calls this in one process only."""
