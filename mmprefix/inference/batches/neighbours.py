"""Neighbours of a call's inputs: each input is compared once, in its batch, and their captions choose among its texts.

A model that reads a context is given captions of them where an input has none of its own. Where the neighbours' encoder
is that of a branch, its features are those that the branch's mapper reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.features.neighbours import WEIGHT, Neighbours
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.call_options import GenerateOverrides
from mmprefix.inference.inputs import InputSource, input_kinds, source_and_span
from mmprefix.model import PrefixLM
from mmprefix.types import Batch, Candidate, Features

BEAMS = 5  # of a search whose texts are chosen among, where a call says no other number
_BESIDE = "input of the neighbours' encoder"  # beside the branches of a batch, under a name that none of them has


@dataclass(frozen=True)
class ComparedBatch(Batch):
    """Batch of inputs that are compared with described ones, by their ``summaries`` (B G)."""

    summaries: Tensor = field(kw_only=True)


class NeighbourReader:
    """Reads what ``neighbours`` compare among the inputs of ``model``: of its branches of that kind the first.

    Raises InputError for a model that reads no inputs of that kind.
    """

    def __init__(self, neighbours: Neighbours, model: PrefixLM) -> None:
        kind = neighbours.encoder.input_kind
        names = [name for name, reads in input_kinds(model).items() if reads == kind]
        if not names:
            raise InputError(f"neighbours: compare inputs of kind {kind}, and this model reads none")
        self.neighbours, self.name, self.reads_text = neighbours, names[0], model.reads_text
        own = names[0] in model.encoders and model.encoder(names[0]) is neighbours.encoder
        self.key = names[0] if own else _BESIDE

    def preprocess(self, sources: Mapping[str, InputSource]) -> dict[str, Tensor]:
        """Tensor that is compared, by its name in a batch; none where the input's branch reads it, or it has none."""
        if self.key != _BESIDE or self.name not in sources:
            return {}
        return {_BESIDE: self.neighbours.encoder.preprocess(*source_and_span(sources[self.name]))}

    def compare(self, batch: Batch) -> Batch:
        """``batch`` with summaries, and with contexts where the model reads some; as it is for inputs without."""
        if self.key not in batch.inputs:
            return batch
        media, encoder = batch.inputs[self.key], self.neighbours.encoder
        features = media if isinstance(media, Features) else encoder(media.to(next(encoder.parameters()).device))
        summaries = features.pooled.float().cpu()
        contexts = self._contexts(batch, summaries) if self.reads_text else batch.contexts
        inputs: dict[str, Any] = {**batch.inputs, self.key: features}
        inputs.pop(_BESIDE, None)
        values: dict[str, Any] = {**vars(batch), "inputs": inputs, "contexts": contexts}
        return ComparedBatch(**values, summaries=summaries)

    def _contexts(self, batch: Batch, summaries: Tensor) -> list[str]:
        """Context of each input: its own, or captions of its neighbours."""
        lacking = [row for row, context in enumerate(batch.contexts) if not context]
        new = dict(zip(lacking, self.neighbours.contexts(summaries[lacking]), strict=True)) if lacking else {}
        return [new.get(row, context) for row, context in enumerate(batch.contexts)]


@dataclass(frozen=True)
class NeighbourChoice:
    """Choice of ``count`` texts among those of a search, by agreement with captions of ``neighbours``."""

    neighbours: Neighbours
    count: int
    weight: float = WEIGHT

    def best(self, batch: Batch, texts: list[list[Candidate]]) -> list[list[Candidate]]:
        """The best ``count`` of the ``texts`` of each input; of one that is not compared the first."""
        if isinstance(batch, ComparedBatch):
            texts = self.neighbours.best_first(batch.summaries, texts, self.weight)
        return [row[: self.count] for row in texts]


def neighbour_choice(
    neighbours: Neighbours | None, options: GenerateOptions, overrides: GenerateOverrides
) -> tuple[GenerateOptions, NeighbourChoice | None]:
    """Options of a call's search, and how its texts are chosen among; None where they stay as they are.

    The search has at least ``BEAMS`` beams, unless the call says how many or draws its texts, and gives all of them.
    Raises InputError for an agreement without neighbours, and where the call's search has one text.
    """
    weight = overrides.get("agreement")
    if neighbours is None:
        if weight is not None:
            raise InputError(f"agreement {weight:g}: weighs neighbours=FILE (--neighbours FILE), which is missing")
        return options, None
    weight = WEIGHT if weight is None else weight
    if not 0 <= weight < float("inf"):
        raise InputError(f"agreement {weight:g}: give a number from 0 on")
    if not weight:
        return options, None
    beams = options.num_beams
    if overrides.get("num_beams") is None and not options.sample:
        beams = max(beams, BEAMS)
    several = max(options.num_return, beams)
    if several == 1:
        raise InputError(
            "neighbours: choose among several texts, and this search has one; give num_beams=5 (--num-beams 5), or "
            "agreement=0, with which they choose nothing"
        )
    return replace(options, num_beams=beams, num_return=several), NeighbourChoice(
        neighbours, options.num_return, weight
    )


def neighbours_for(model: PrefixLM, neighbours: Neighbours) -> Neighbours:
    """``neighbours``, with the encoder of ``model`` where it has theirs.

    Raises InputError for a model that reads no inputs of their kind.
    """
    own = neighbours.with_encoder_of(model.encoders.values())
    NeighbourReader(own, model)
    return own
