"""Options ``--neighbours`` and ``--agreement``: captions of the inputs most like a row's own help to write its text."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from mmprefix.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mmprefix.cli.model_inputs import Selection
    from mmprefix.features.neighbours import Neighbours
    from mmprefix.inference.predictor import Predictor
    from mmprefix.types import Candidate

_BATCH = 16


def add_neighbours(parser: argparse.ArgumentParser) -> None:
    """Add the options for neighbours."""
    group = parser.add_argument_group("neighbours", "Captions of the inputs most like each one (docs/neighbours.md).")
    group.add_argument(
        "--neighbours",
        metavar="FILE",
        help="of several beams take the text that agrees most with captions in this file; a model that reads a context "
        "is given some of them",
    )
    group.add_argument(
        "--agreement",
        type=float,
        metavar="X",
        help="weight of that agreement beside a text's score (default 3, 0: none)",
    )


def row_neighbours(args: argparse.Namespace, rows: Selection, model: Predictor) -> RowNeighbours | None:
    """Neighbours of each row, where the command line names a file of them.

    Raises InputError for a file that is none, a model that reads no inputs of that kind, and where there is nothing
    that neighbours could do: one beam, and a model that reads no context.
    """
    if args.neighbours is None:
        if args.agreement is not None:
            raise InputError(f"--agreement {args.agreement:g}: weighs --neighbours FILE, which is missing")
        return None
    from mmprefix.features.neighbours import WEIGHT, Neighbours

    weight = WEIGHT if args.agreement is None else args.agreement
    if not 0 <= weight < float("inf"):
        raise InputError(f"--agreement {args.agreement:g}: give a number from 0 on")
    beams = 1 if args.stream else max(args.num_return, args.num_beams or model.options.num_beams)
    if not model.model.reads_text and (beams == 1 or not weight):
        raise InputError(
            "--neighbours: choose among several beams, and this search has one text; give --num-beams 5, and neither "
            "--stream nor --agreement 0"
        )
    neighbours = Neighbours.load(args.neighbours)
    neighbours.encoder.to(model.device)
    kind = neighbours.encoder.input_kind
    names = [name for name, reads in model.kinds.items() if reads == kind]
    if not names:
        raise InputError(f"--neighbours {args.neighbours}: compares inputs of kind {kind}, and this model reads none")
    sources = [value.get(names[0]) if isinstance(value, dict) else value for value in rows.values]
    return RowNeighbours(neighbours, sources, beams, weight)


class RowNeighbours:
    """Neighbours of the inputs of a run, which are encoded a few at a time, when they are asked for.

    ``beams`` texts are written for each; the best first are those that agree with the neighbours' captions.
    """

    def __init__(self, neighbours: Neighbours, sources: Sequence[Any], beams: int, weight: float) -> None:
        self.neighbours, self.sources, self.beams, self.weight = neighbours, sources, beams, weight
        self._summaries: dict[int, Tensor | None] = {}

    def contexts(self, rows: Sequence[int]) -> list[str]:
        """Context of each row; "" for one that cannot be read, whose fault the run reports."""
        return ["" if row is None else self.neighbours.contexts(row[None])[0] for row in self._encoded(rows)]

    def best_first(
        self, results: Iterable[list[Candidate] | InputError], count: int
    ) -> Iterator[list[Candidate] | InputError]:
        """``count`` texts of each row's beams, in the order of the rows."""
        for n, texts in enumerate(results):
            if not isinstance(texts, InputError):
                (summary,) = self._encoded([n])
                ranked = None if summary is None else self.neighbours.best_first(summary[None], [texts], self.weight)
                texts = (texts if ranked is None else ranked[0])[:count]
            self._summaries.pop(n, None)
            yield texts

    def _encoded(self, rows: Sequence[int]) -> list[Tensor | None]:
        if new := [n for n in rows if n not in self._summaries]:
            ahead = range(new[-1] + 1, min(new[-1] + _BATCH, len(self.sources))) if len(rows) == 1 else range(0)
            new += [n for n in ahead if n not in self._summaries]
            self._summaries |= dict(zip(new, self._embed([self.sources[n] for n in new]), strict=True))
        return [self._summaries[n] for n in rows]

    def _embed(self, sources: Sequence[Any]) -> list[Tensor | None]:
        try:
            if None not in sources:  # a row without such an input
                return list(self.neighbours.embed(sources))
        except InputError:
            pass
        return [None] if len(sources) == 1 else [row for source in sources for row in self._embed([source])]


class NeighbourContexts(Sequence[str]):
    """Contexts of rows, each its own or captions of its neighbours, found when a part of the rows is asked for."""

    def __init__(self, rows: RowNeighbours, own: Sequence[str]) -> None:
        self.rows, self.own = rows, own

    def __len__(self) -> int:
        return len(self.own)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        numbers = range(len(self))[index]
        if isinstance(numbers, int):
            return self[numbers : numbers + 1][0]
        lacking = [n for n in numbers if not self.own[n]]
        contexts = dict(zip(lacking, self.rows.contexts(lacking), strict=True))
        return [contexts.get(n, self.own[n]) for n in numbers]
