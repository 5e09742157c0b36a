"""The file mmprefix.yaml of a saved model: the recipe that rebuilds it, the identity of its frozen parts, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from mmprefix.errors import InputError
from mmprefix.parts import with_added_options, with_current_names, without_sizes
from mmprefix.trust.option_types import require_types
from mmprefix.trust.plain_yaml import read_yaml
from mmprefix.weights import frozen_parts
from mmprefix.weights.source import RECIPE, Provenance

FORMAT = 1


def read_recipe(directory: Path) -> dict[str, Any]:
    """The recipe and settings of a model directory; InputError where it is none, or of a later format."""
    file = directory / RECIPE
    if not file.is_file():
        raise InputError(f"{directory}: is no saved model (it has no {RECIPE}); mmprefix fit and model.save write one")
    saved = read_yaml(file)
    saved = cast(dict[str, Any], saved) if isinstance(saved, dict) else {}
    if saved.get("format") != FORMAT:
        raise InputError(f"{file}: is not of format {FORMAT}, which this version of mmprefix reads")
    for key in ("recipe", "parts"):
        if not isinstance(saved.get(key), dict):
            raise InputError(f"{file}: has no {key}; it was changed after it was saved")
    require_types(_recorded, {"sha256": saved.get("sha256", {})}, str(file))
    for name, identity in saved["parts"].items():
        if not isinstance(identity, dict) or identity.keys() < {"source", "revision", "sha256"}:
            raise InputError(
                f"{file}: parts.{name} needs source, revision and sha256; it was changed after it was saved"
            )
        require_types(Provenance, identity, f"{file}: parts.{name}")
    try:
        for name in {*frozen_parts.part_names(saved["recipe"]), "decoder"}:
            dict(frozen_parts.part_options(saved["recipe"], name))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: its recipe lacks branches, their encoders or the decoder ({error})") from error
    return cast(dict[str, Any], with_added_options(without_sizes(with_current_names(saved))))


def _recorded(sha256: dict[str, str]) -> None:
    """Types of what is recorded beside recipe and parts."""
