"""Folder of a saved model by its name, or one line that says what would work; nothing heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mmprefix.errors import InputError, did_you_mean
from mmprefix.weights.source import EMBEDDED, MODELS, RECIPE, read_json, resolve_model

EMBEDDED_MODEL = f"{EMBEDDED}world/trained"  # of the quick start; in the package, so that something works at once


def is_recipe(source: str | Path) -> bool:
    """True for a YAML file, whose parts are used untrained."""
    path = Path(source).expanduser()
    return path.suffix in (".yaml", ".yml") and path.name != RECIPE and path.is_file()


def find_model(source: str | Path, revision: str | None = None) -> Path:
    """Directory of the saved model ``source``: a folder, or a hub repository, which is fetched; or a recipe's file.

    Raises InputError for a missing folder, with the model that may be meant, and for a folder that is no model.
    """
    path = Path(source).expanduser()
    if is_recipe(path):
        return path
    if not path.exists():
        if not str(source).startswith(MODELS) and not _may_be_on_a_hub(str(source)):
            raise InputError(f"{str(source)!r}: no such folder{_nearby(path)}")
        path = resolve_model(str(source), revision)
    if not (path / RECIPE).is_file():
        inside = _models_below(path)
        advice = f"did you mean {str(inside[0])!r}?" if inside else _what_writes_one(path)
        raise InputError(f"{path}: is no saved model (it has no {RECIPE}); {advice}")
    return path


def _what_writes_one(path: Path) -> str:
    """Advice where a folder is no saved model; one with a pretrained part is used through a recipe."""
    if not (path / "config.json").is_file():
        return "mmprefix fit and model.save write one"
    kind = read_json(path / "config.json").get("model_type") or "pretrained"
    return (
        f"its {kind} model is a part of one: give a recipe that names it, which answers untrained, or train that by "
        "mmprefix fit"
    )


def _may_be_on_a_hub(name: str) -> bool:
    """True for OWNER/NAME, unless OWNER is a folder of saved models here, or ``runs``, where runs are written."""
    owner, slash, rest = name.partition("/")
    if Path(name).is_absolute() or name.startswith((".", "~")) or not slash or "/" in rest:
        return False
    return owner != "runs" and not _models_below(Path(owner))


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


def upload(save: Callable[[Path], None], repo: str, *, private: bool) -> str:
    """Upload the directory that ``save`` writes to the hub repository ``repo``, new or not; returns its address."""
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model")
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(Path(folder) / "model"))
    return str(url)
