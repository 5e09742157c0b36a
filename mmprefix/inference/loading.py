"""A saved model, or the untrained parts of a recipe → Predictor. Paths are looked at before heavy imports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from mmprefix.inference.model_folder import EMBEDDED_MODEL, find_model, is_recipe

if TYPE_CHECKING:
    from mmprefix.features.neighbours import Neighbours
    from mmprefix.inference.predictor import Predictor
    from mmprefix.users.store import UserStore


class Beside(TypedDict):
    """Users and neighbours, which a Predictor reads beside its inputs."""

    users: UserStore | None
    neighbours: Neighbours | None


def load(
    source: str | Path = EMBEDDED_MODEL,
    *,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    parts: dict[str, str] | None = None,
    revision: str | None = None,
    allow: Sequence[str] = (),
    users: str | Path | None = None,
    neighbours: str | Path | None = None,
) -> Predictor:
    """A Predictor from a saved directory or a hub repository, or from a recipe's file, of which nothing is trained.

    Without ``source`` it is that of the embedded world: pictures of shapes and short sounds (``mmprefix.world``).

    ``device``: "cuda" where there is one, else "mps", else "cpu". ``dtype`` of the frozen parts: bfloat16 on a GPU that
    has it, else float32. ``parts``: where a frozen part is now, by branch name or "decoder", if it has moved.
    ``allow``: modules besides this package whose classes the model may name; their code runs.
    ``users``: a store of users (``mmprefix users``), in which a call's ``user`` is looked up.
    ``neighbours``: a file of described inputs, whose captions choose among the texts of a call (docs/neighbours.md).
    Raises InputError for a directory that is no model, damaged files, and frozen parts other than it was trained with.
    """
    directory = find_model(source, revision)
    from mmprefix.inference.untrained import load_recipe
    from mmprefix.trust.plain_yaml import read_yaml

    beside = open_beside(users, neighbours)
    if is_recipe(directory):
        recipe = read_yaml(directory)
        return load_recipe(recipe, directory, beside, device=device, dtype=dtype, parts=parts, allow=allow)
    from mmprefix import saved_model
    from mmprefix.inference.predictor import Predictor
    from mmprefix.trust.modules import allow_modules
    from mmprefix.weights.devices import best_device, default_dtype, require_device

    target = require_device(device or best_device())
    with allow_modules(allow):
        model, settings = saved_model.load(directory, parts)
    return Predictor(model, settings, str(source), **beside).to(target, default_dtype(dtype, target))


def open_beside(users: str | Path | None = None, neighbours: str | Path | None = None) -> Beside:
    """Users and neighbours in two files; InputError where one is not what it should be."""
    from mmprefix.features.neighbours import Neighbours
    from mmprefix.users.store import UserStore

    store = None if users is None else UserStore(users)
    return {"users": store, "neighbours": None if neighbours is None else Neighbours.load(neighbours)}
