"""Request of a call: its inputs, and what goes with each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mmprefix.errors import InputError
from mmprefix.inference.batches.neighbours import NeighbourReader
from mmprefix.inference.inputs import Input
from mmprefix.media.source import Texts
from mmprefix.types import FeatureRow

WINDOW_BATCHES = 8  # batches whose files are decoded, and sorted by length, together


@dataclass(frozen=True)
class BatchRequest:
    """Inputs, and for each of them its prompt, its context and the target texts to score, if any.

    ``first`` is the number of the first input, counted over all requests of a stream. ``texts`` are read beside each
    input, by branch, and ``features`` need not be read any more; none where they are empty. ``histories`` are earlier
    texts of each input's user that stand in its prompt. ``neighbours`` compare each input with described ones.
    """

    inputs: Sequence[Input]
    prompts: Sequence[str]
    contexts: Sequence[str]
    targets: Sequence[list[str]]
    batch_size: int
    allow_urls: bool = False
    first: int = 0
    texts: Sequence[Mapping[str, Texts]] = ()
    features: Sequence[Mapping[str, FeatureRow]] = ()
    histories: Sequence[Sequence[str]] = ()
    neighbours: NeighbourReader | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size}: give a number from 1 on")

    def windows(self) -> Iterator[BatchRequest]:
        """Parts of the request whose files are decoded, and sorted by length, together."""
        step = self.batch_size * WINDOW_BATCHES
        for start in range(0, len(self.inputs), step):
            part = slice(start, start + step)
            prompts, contexts, targets = self.prompts[part], self.contexts[part], self.targets[part]
            words = {"prompts": prompts, "contexts": contexts, "targets": targets}
            texts, features, histories = self.texts[part], self.features[part], self.histories[part]
            beside = {"texts": texts, "features": features, "histories": histories}
            yield replace(self, inputs=self.inputs[part], first=self.first + start, **words, **beside)

    def history(self, number: int) -> Sequence[str]:
        """Earlier texts that stand in the prompt of input ``number``."""
        return self.histories[number] if self.histories else ()
