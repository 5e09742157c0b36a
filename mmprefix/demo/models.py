"""Models of the page: those that were named, those below ``runs``, and the embedded one; loaded at their first use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmprefix.errors import InputError
from mmprefix.inference.model_folder import EMBEDDED_MODEL, find_model
from mmprefix.weights.source import RECIPE

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor

_MOST_LOADED = 2
EMBEDDED_NAME = "embedded world (shapes and short sounds)"


def local_models(named: Sequence[str] = (), runs: Path | None = None) -> dict[str, str]:
    """Place of each model by its name on the page: the ``named`` first, then ``runs/*/model``, then the embedded one.

    Raises InputError for a named one that is no model.
    """
    for source in named:
        find_model(source)
    folder = Path("runs") if runs is None else runs
    below = sorted(path.parent for path in folder.glob(f"*/model/{RECIPE}")) if folder.is_dir() else []
    places = {Path(source).resolve() for source in named if Path(source).is_dir()}
    others = [str(path) for path in below if path.resolve() not in places]
    models = {source: source for source in [*named, *others] if source != EMBEDDED_MODEL}
    return {**models, EMBEDDED_NAME: EMBEDDED_MODEL}


class ModelShelf:
    """Predictors by name; the two used last stay loaded. Calls may come from several threads.

    ``neighbours``: file of described inputs, by the place of a model that reads them (see ``mmprefix.load``).
    """

    def __init__(
        self,
        places: dict[str, str],
        *,
        users: str | None = None,
        neighbours: Mapping[str, str | None] | None = None,
        device: str | None = None,
    ) -> None:
        self.places, self.users, self.neighbours, self.device = places, users, neighbours or {}, device
        self._loaded: OrderedDict[str, Predictor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the models, the default first."""
        return list(self.places)

    def get(self, name: str | None) -> Predictor:
        """The model ``name``. Raises InputError for a name that the page does not offer, and as ``mmprefix.load``."""
        if name not in self.places:
            raise InputError(f"model {str(name)[:100]!r}: this page does not have it; choose one from its list")
        with self._lock:
            if name not in self._loaded:
                from mmprefix.inference.loading import load

                place = self.places[name]
                neighbours = self.neighbours.get(place)
                self._loaded[name] = load(place, device=self.device, users=self.users, neighbours=neighbours)
                if len(self._loaded) > _MOST_LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def warm_up(self) -> None:
        """Load the default model, so that the first visitor waits less; what is wrong with it is said at its call."""
        with suppress(Exception):
            self.get(self.names[0])
