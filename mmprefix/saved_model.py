"""What was trained, and what rebuilds the rest: saved to a temporary name, then renamed; refused where it does not fit.

A checkpoint holds trained tensors only. Beside them stand the recipe of the frozen parts and their identity (source,
revision, hash of the weights), since a mapper means nothing to another encoder or decoder.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmprefix.atomic import disk_errors_as_input_errors
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.model import PrefixLM
from mmprefix.parts import with_current_names

_OWN = ("decoder", "transcriber")  # frozen parts that are no branch's encoder
RECIPE, WEIGHTS, CARD = "mmprefix.yaml", "model.safetensors", "README.md"
FORMAT = 1
_PLACES = ("model", "pretrained", "config", "weights", "file", "folder")
_WHERE = ("model", "revision", "pretrained", "dtype")  # options that say where weights are, not what is made of them


def describe(model: PrefixLM) -> dict[str, Any]:
    """The recipe of ``model`` and the identity of every frozen part.

    Places on disk are made absolute, and what came from a hub is pinned to the commit it was.
    """
    for name, part in model.frozen_parts.items():
        if not part.identity.sha256 and not part.trained:
            raise InputError(
                f"encoder of branch {name!r}: has random weights (model: null) that nobody trains and nothing can make "
                "again; name its weights, or train it (UnfreezeUntil)"
            )
    parts = {name: part.identity.as_dict() for name, part in model.frozen_parts.items()}
    recipe = cast(dict[str, Any], _absolute(model.recipe()))
    for name, identity in parts.items():
        arguments = _arguments(recipe, name)
        if identity["revision"] and "revision" in arguments:
            arguments["revision"] = identity["revision"]
    return {"format": FORMAT, "recipe": recipe, "parts": parts}


def require_ours(checkpoint: Any, file: Path | str) -> None:
    """Refuses a checkpoint that another program wrote."""
    if not isinstance(checkpoint, dict) or not {"mmprefix", "state_dict", "random_states"} <= checkpoint.keys():
        raise InputError(f"{file}: was not written by mmprefix: it does not say what its encoder and decoder were")


def require_same_parts(model: PrefixLM, saved: dict[str, Any], file: Path | str) -> None:
    """Refuses, by name, a frozen part that is not the one that ``saved`` (see ``describe``) was trained with."""
    now, saved = describe(model), with_current_names(saved)
    for name in sorted(now["parts"].keys() | saved.get("parts", {}).keys()):
        old, new = saved.get("parts", {}).get(name), now["parts"].get(name)
        kind = _kind(name)
        if new is None:
            raise InputError(f"{file}: was trained with the {kind}, which this model does not have")
        if old is None:
            raise InputError(f"{file}: was trained without the {kind}, which this model has")
        if old["sha256"] != new["sha256"]:
            raise InputError(
                f"{file}: was trained with the {kind} {old['source']!r} (sha256 {old['sha256'][:12]}), "
                f"but this one is {new['source']!r} (sha256 {new['sha256'][:12]}); use the same weights"
            )
        _check_options(_part(saved["recipe"], name), _part(now["recipe"], name), kind, file)


def _part(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """The recipe of the frozen part that is called ``name``."""
    return recipe[name] if name in _OWN else recipe["branches"][name]["encoder"]


def _names(recipe: dict[str, Any]) -> list[str]:
    """The frozen parts of a recipe."""
    return [*recipe["branches"], *(name for name in _OWN if name in recipe)]


def _kind(name: str) -> str:
    return name if name in _OWN else f"encoder of branch {name!r}"


def _check_options(was: dict[str, Any], now: dict[str, Any], kind: str, file: Path | str) -> None:
    if was["class_path"] != now["class_path"]:
        raise InputError(
            f"{file}: was trained with the {kind} as a {was['class_path']}, but this one is a {now['class_path']}"
        )
    for option, value in was["init_args"].items():
        if option not in _WHERE and now["init_args"].get(option) != value:
            raise InputError(
                f"{file}: the {kind} was trained with {option}={_short(value)}, "
                f"but this one has {option}={_short(now['init_args'].get(option))}"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]} ... ({len(value)} in all)"


def load_trained(model: PrefixLM, tensors: dict[str, Tensor], file: Path | str) -> None:
    """Copies trained tensors into ``model``; InputError names the first that is missing, foreign or misshapen."""
    own = model.trained
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors:
            raise InputError(f"{file}: holds no tensor {name!r}, which this model trains")
        if name not in own:
            raise InputError(f"{file}: holds a tensor {name!r}, which this model does not have")
        if own[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, this model's {tuple(own[name].shape)}"
            raise InputError(
                f"{file}: tensor {name!r} has the shape {shapes}; is it the same mapper, with the same sizes?"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def require_writable(directory: Path | str) -> None:
    """Refuses a place that ``save`` would not write to: a file, or a directory of other things than a saved model."""
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; give a directory for the model")
    if target.exists() and any(target.iterdir()) and not (target / RECIPE).is_file():
        raise InputError(f"{target}: is not empty and no saved model; give another directory")


def save(model: PrefixLM, directory: Path | str, settings: dict[str, Any], card: str) -> None:
    """Writes the model directory: recipe and ``settings`` (yaml), trained tensors (safetensors), model card.

    A directory of an earlier save is replaced whole; whatever goes wrong before, it stays as it was.
    """
    target = Path(directory)
    require_writable(target)
    with disk_errors_as_input_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in model.trained.items()}, fresh / WEIGHTS
            )
            text = yaml.safe_dump({**_without_bases(model), **settings}, sort_keys=False, allow_unicode=True)
            (fresh / RECIPE).write_text(text, encoding="utf-8")
            (fresh / CARD).write_text(card, encoding="utf-8")
            fresh.chmod(0o755)
            (fresh / WEIGHTS).chmod(0o644)  # temporary places are private; a saved model is not
            _swap(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _without_bases(model: PrefixLM) -> dict[str, Any]:
    """``describe``, but what a tuned encoder started from is not needed again: all its tensors are saved."""
    described = describe(model)
    for name, part in model.frozen_parts.items():
        if isinstance(part, Encoder) and part.saved and part.can_start_empty:
            _arguments(described["recipe"], name)["model"] = None
            described["parts"][name]["sha256"] = ""
    return described


def _swap(fresh: Path, target: Path) -> None:
    if not target.exists():
        fresh.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old / target.name)
    try:
        fresh.rename(target)
    except OSError:
        (old / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def read_recipe(directory: Path) -> dict[str, Any]:
    """The recipe and settings of a model directory; InputError where it is none, or of a later format."""
    file = directory / RECIPE
    if not file.is_file():
        raise InputError(f"{directory}: is no saved model (it has no {RECIPE}); mmprefix fit and model.save write one")
    try:
        saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{file}: is no YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise InputError(f"{file}: is not of format {FORMAT}, which this version of mmprefix reads")
    for key in ("recipe", "parts"):
        if not isinstance(saved.get(key), dict):
            raise InputError(f"{file}: has no {key}; it was changed after it was saved")
    try:
        for name in {*_names(saved["recipe"]), "decoder"}:
            dict(_arguments(saved["recipe"], name))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: its recipe lacks branches, their encoders or the decoder ({error})") from error
    return cast(dict[str, Any], with_current_names(saved))


def load(directory: Path, parts: dict[str, str] | None = None) -> tuple[PrefixLM, dict[str, Any]]:
    """The model in ``directory`` and its settings. ``parts`` says where frozen parts are now, by name, if they moved.

    Raises InputError for a damaged file, and for frozen parts that are not those it was trained with.
    """
    saved = read_recipe(directory)
    for name, place in (parts or {}).items():
        _move(saved["recipe"], name, place)
    _refuse_gone(saved["recipe"], directory)
    model = PrefixLM.from_recipe(saved["recipe"])
    require_same_parts(model, saved, directory)
    load_trained(model, read_tensors(directory), directory / WEIGHTS)
    return model, saved


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """The trained tensors of a model directory; InputError for a file that is missing or damaged."""
    file = directory / WEIGHTS
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error


def _move(recipe: dict[str, Any], name: str, place: str) -> None:
    if name not in _names(recipe):
        raise InputError(f"part {name!r}: this model has {', '.join(_names(recipe))}")
    arguments = _arguments(recipe, name)
    option = "pretrained" if Path(str(arguments.get("pretrained"))).is_absolute() else "model"  # a file of weights
    arguments[option] = place
    if "revision" in arguments:
        arguments["revision"] = None


def _refuse_gone(recipe: dict[str, Any], directory: Path) -> None:
    """Names a frozen part whose file or folder is not where it was, and how to say where it is now."""
    for name in _names(recipe):
        for option in ("model", "pretrained"):
            place = Path(str(_arguments(recipe, name).get(option)))
            if place.is_absolute() and not place.exists():
                raise InputError(
                    f"{directory}: the {_kind(name)} is not at {place}; say where it is now: "
                    f"--part {name}=PLACE in the shell, parts={{{name!r}: PLACE}} in Python"
                )


def _arguments(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """The arguments of the frozen part that is called ``name``."""
    return _part(recipe, name)["init_args"]


def _absolute(value: Any, option: str = "") -> Any:
    """``value`` with every option that names a place on disk made an absolute path."""
    if isinstance(value, dict):
        return {key: _absolute(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, option) for item in value]
    # by the option's name, since other texts may be called like a file too: stop="." is no place
    if option in _PLACES and isinstance(value, str) and value and Path(value).expanduser().exists():
        return str(Path(value).expanduser().resolve())
    return value
