"""Folder of a saved model by its name, or one line that says what would work; nothing heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path

from mmprefix.errors import InputError, did_you_mean
from mmprefix.weights.source import RECIPE, resolve_model


def find_model(source: str | Path, revision: str | None = None) -> Path:
    """Directory of the saved model ``source``: a folder, or a hub repository, which is fetched.

    Raises InputError for a missing folder, with the model that may be meant, and for a folder that is no model.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if _is_local(str(source)):
            raise InputError(f"{str(source)!r}: no such folder{_nearby(path)}")
        path = resolve_model(str(source), revision)
    if not (path / RECIPE).is_file():
        inside = _models_below(path)
        advice = f"did you mean {str(inside[0])!r}?" if inside else "mmprefix fit and model.save write one"
        raise InputError(f"{path}: is no saved model (it has no {RECIPE}); {advice}")
    return path


def require_hub_name(source: str | Path) -> None:
    """Raise InputError for a missing folder whose name cannot be that of a hub repository."""
    if not Path(source).expanduser().exists() and _is_local(str(source)):
        raise InputError(f"{str(source)!r}: no such folder{_nearby(Path(source).expanduser())}")


def _is_local(name: str) -> bool:
    """True for a name that leads into folders of this machine: a hub has OWNER/NAME alone."""
    first, slash, _ = name.partition("/")
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        return True
    return bool(slash) and Path(first).is_dir()


def _nearby(path: Path) -> str:
    """``; did you mean ...?`` with a model beside the missing ``path``; an empty text where none is near."""
    models = [str(folder) for folder in _models_below(path.parent)]
    return did_you_mean(str(path), models)


def _models_below(folder: Path, depth: int = 2) -> list[Path]:
    """Saved models in ``folder`` and in the folders in it, at most a thousand entries of which are looked at."""
    if depth == 0 or not folder.is_dir():
        return []
    models: list[Path] = []
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())[:1000]
    except OSError:
        return []
    for name in names:
        below = folder / name
        models += [below] if (below / RECIPE).is_file() else _models_below(below, depth - 1)
    return models
