"""Start of a training from the trained tensors of another, as Prefix-AAC on Clotho starts from AudioCaps."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.mappers.user_rows import UserRows
from mmprefix.model import PrefixLM
from mmprefix.saved_model import read_tensors
from mmprefix.weights import source as sources
from mmprefix.weights.recipe_file import read_recipe

log = logging.getLogger(__name__)


def warm_start(model: PrefixLM, source: str) -> None:
    """Copy into ``model`` the trained tensors of the saved model ``source`` (directory or hub repository).

    Tensors that only one of the two has are left alone, and counted in the log. Words of a vocabulary (see
    ``mmprefix.decoders.word_level``) get their row by name, users (``UserRows``) by their hash. Raises InputError where
    the decoder or an encoder that was not tuned is another, where a tensor has another shape, and where the two have no
    tensor in common.
    """
    place = Path(source).expanduser()
    directory = place if place.exists() else sources.resolve_folder(source)
    saved = read_recipe(directory)
    tensors = read_tensors(directory, saved.get("sha256"))
    for name, part in model.frozen_parts.items():
        was = saved["parts"].get(name)
        if was is None or part.trained == ("",):
            continue
        if not was["sha256"]:
            raise InputError(
                f"model.start_from {source}: its encoder {name!r} was tuned; tune it here too (UnfreezeUntil)"
            )
        if was["sha256"] != part.identity.sha256:
            raise InputError(
                f"model.start_from {source}: was trained with another {name} than {part.identity.source!r}"
            )
    own = model.trained
    tensors = model.decoder.remap_saved(tensors, saved["recipe"]["decoder"]["init_args"])
    tensors |= _users_rows(model, tensors)
    common = sorted(own.keys() & tensors.keys())
    if not common:
        raise InputError(f"model.start_from {source}: holds none of the tensors that this model trains")
    for name in common:
        if own[name].shape != tensors[name].shape:
            raise InputError(
                f"model.start_from {source}: tensor {name!r} has the shape {tuple(tensors[name].shape)}, "
                f"this model's {tuple(own[name].shape)}"
            )
        with torch.no_grad():
            own[name].copy_(tensors[name])
    log.info("%d of %d trained tensors start from %s", len(common), len(own), source)


def _users_rows(model: PrefixLM, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys and rows of users in tables of the sizes that ``model`` has; InputError where the users do not fit."""
    fitted: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        keys, rows = tensors.get(f"{name}.keys"), tensors.get(f"{name}.rows")
        if isinstance(part, UserRows) and keys is not None and rows is not None:
            fitted[f"{name}.keys"], fitted[f"{name}.rows"] = part.fitted(keys, rows)
    return fitted
