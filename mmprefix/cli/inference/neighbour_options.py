"""Option ``--neighbours``: captions of the inputs most like a row's own are its context."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.cli.model_inputs import Selection
    from mmprefix.features.neighbours import Neighbours
    from mmprefix.inference.predictor import Predictor


def add_neighbours(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the file of neighbours."""
    parser.add_argument(
        "--neighbours",
        metavar="FILE",
        help="give a row without context captions of the inputs most like it, from this file (docs/neighbours.md)",
    )


def neighbour_contexts(args: argparse.Namespace, rows: Selection, model: Predictor) -> Sequence[str] | None:
    """Context of each row: its own, or captions of its neighbours where the command line names a file of them.

    Raises InputError for a file that is none, and for a model that reads no context, or no inputs of that kind.
    """
    if args.neighbours is None:
        return rows.context
    if not model.model.reads_text:
        raise InputError("--neighbours: this model reads no context; leave it out")
    from mmprefix.features.neighbours import Neighbours

    neighbours = Neighbours.load(args.neighbours)
    neighbours.encoder.to(model.device)
    kind = neighbours.encoder.input_kind
    names = [name for name, reads in model.kinds.items() if reads == kind]
    if not names:
        raise InputError(
            f"--neighbours {args.neighbours}: compares inputs of kind {kind}, which this model does not read"
        )
    return NeighbourContexts(neighbours, [_named(value, names[0]) for value in rows.values], rows.contexts)


def _named(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else value


class NeighbourContexts(Sequence[str]):
    """Contexts that are looked for when they are asked for, so that a long run begins at once.

    A row keeps a context of its own; one that cannot be read has none, and the run reports its fault.
    """

    def __init__(self, neighbours: Neighbours, sources: Sequence[Any], own: Sequence[str]) -> None:
        self.neighbours, self.sources, self.own = neighbours, sources, own

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        rows = range(len(self))[index]
        if isinstance(rows, int):
            return self[rows : rows + 1][0]
        asked = [n for n in rows if not self.own[n] and self.sources[n] is not None]
        contexts = dict(zip(asked, self._contexts([self.sources[n] for n in asked]), strict=True))
        return [contexts.get(n, self.own[n]) for n in rows]

    def _contexts(self, sources: Sequence[Any]) -> list[str]:
        try:
            return self.neighbours(sources)
        except InputError:
            return [""] if len(sources) == 1 else [text for source in sources for text in self._contexts([source])]
