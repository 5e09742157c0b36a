"""Saved models: trained tensors, the recipe that rebuilds the rest, and settings; refused where they do not fit.

A model directory holds ``model.safetensors`` (trained tensors only), ``mmprefix.yaml`` (the recipe of all parts, the
identity of the frozen ones: source, revision, hash of the weights; settings) and a model card. A mapper means nothing
to another encoder or decoder, so frozen parts other than those it was trained with are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from mmprefix.atomic import write_directory_atomically
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.model import PrefixLM
from mmprefix.parts import with_current_names, without_sizes
from mmprefix.trust.plain_yaml import read_yaml
from mmprefix.weights import frozen_parts

RECIPE, WEIGHTS, CARD = "mmprefix.yaml", "model.safetensors", "README.md"
FORMAT = 1


@dataclass(frozen=True)
class Captioning:
    """One text for each input."""


@dataclass(frozen=True)
class Understanding:
    """Intent and slots by the questions of a schema: a shipped one's name, or all that its file holds."""

    schema: str | dict[str, Any]
    framing: str | None = None


@dataclass(frozen=True)
class Detection:
    """Log odds of the first of two answers against the second."""

    answers: tuple[str, str]


@dataclass(frozen=True)
class TrainingRecord:
    """Names of the data files that a model was trained and measured on, and the figures of its last evaluation."""

    data: list[str]
    measured_on: str = "val"
    figures: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class ImportRecord:
    """A checkpoint of another program: the program, the file, and the hash of a single file."""

    system: str
    source: str
    sha256: str | None = None


@dataclass(frozen=True)
class ModelSettings:
    """Everything of a saved model that is neither its recipe nor its tensors.

    Args:
        generate: decoding where a call says nothing else.
        prompt: the text before every caption where a call gives none.
        trained: data and figures of the training.
        imported: the checkpoint of another program that the model was made from.
        task: what the model was trained to do.
    """

    generate: GenerateOptions = GenerateOptions()  # noqa: RUF009 (frozen)
    prompt: str | None = None
    trained: TrainingRecord | None = None
    imported: ImportRecord | None = None
    task: Captioning | Understanding | Detection = Captioning()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in ``mmprefix.yaml`` behind recipe and parts."""
        data: dict[str, Any] = {"generate": asdict(self.generate)}
        if self.trained is not None:
            data["trained"] = asdict(self.trained)
        if self.imported is not None:
            data["imported"] = {name: value for name, value in asdict(self.imported).items() if value is not None}
        if self.trained is not None or self.prompt is not None:
            data["prompt"] = self.prompt
        if isinstance(self.task, Understanding):
            data |= {"schema": self.task.schema, "framing": self.task.framing}
        if isinstance(self.task, Detection):
            data["answers"] = list(self.task.answers)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSettings:
        """The inverse of ``to_dict``; keys that this version does not know are passed over.

        Raises InputError for values that no model can have.
        """
        try:
            trained, imported = data.get("trained"), data.get("imported")
            return cls(
                GenerateOptions(**_known(GenerateOptions, data.get("generate") or {})),
                data.get("prompt"),
                TrainingRecord(**_known(TrainingRecord, trained)) if trained else None,
                ImportRecord(**_known(ImportRecord, imported)) if imported else None,
                task_from_dict(data),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{RECIPE}: its settings were changed after they were saved ({error})") from error


def task_from_dict(data: Mapping[str, Any]) -> Captioning | Understanding | Detection:
    """The task that ``data`` names by its keys: ``schema`` and ``framing``, ``answers``, or neither."""
    if schema := data.get("schema"):
        return Understanding(schema, data.get("framing"))
    if answers := data.get("answers"):
        first, second = answers
        return Detection((str(first), str(second)))
    return Captioning()


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in data.items() if name in names}


def describe(model: PrefixLM) -> dict[str, Any]:
    """The recipe of ``model`` and the identity of every frozen part.

    Paths are made absolute, and weights that came from a hub are pinned to their commit.
    """
    for name, part in model.frozen_parts.items():
        if not part.identity.sha256 and not part.trained:
            raise InputError(
                f"encoder of branch {name!r}: has random weights (model: null) that nobody trains and nothing can make "
                "again; name its weights, or train it (UnfreezeUntil)"
            )
    parts = {name: part.identity.as_dict() for name, part in model.frozen_parts.items()}
    recipe = frozen_parts.absolute_paths(model.recipe())
    for name, identity in parts.items():
        options = frozen_parts.part_options(recipe, name)
        if identity["revision"] and "revision" in options:
            options["revision"] = identity["revision"]
    return {"format": FORMAT, "recipe": recipe, "parts": parts}


def require_ours(checkpoint: Any, file: Path | str) -> None:
    """Refuses a checkpoint that another program wrote."""
    if not isinstance(checkpoint, dict) or not {"mmprefix", "state_dict", "random_states"} <= checkpoint.keys():
        raise InputError(f"{file}: was not written by mmprefix: it does not say what its encoder and decoder were")


def require_same_parts(model: PrefixLM, saved: dict[str, Any], file: Path | str) -> None:
    """Refuses, by name, a frozen part that is not the one that ``saved`` (see ``describe``) was trained with."""
    frozen_parts.require_same(describe(model), saved, file)


def load_trained(model: PrefixLM, tensors: dict[str, Tensor], file: Path | str) -> None:
    """Copies trained tensors into ``model``.

    InputError names the first that is missing, foreign or misshapen, of another type, or holds NaN or infinity.
    """
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
        if tensors[name].is_floating_point() != own[name].is_floating_point() or tensors[name].is_complex():
            types = f"{tensors[name].dtype}, this model's {own[name].dtype}".replace("torch.", "")
            raise InputError(f"{file}: tensor {name!r} is of type {types}")
        if not tensors[name].isfinite().all():
            raise InputError(f"{file}: tensor {name!r} holds NaN or infinity; take a checkpoint of before it diverged")
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


def save(model: PrefixLM, directory: Path | str, settings: ModelSettings, card: str) -> None:
    """Writes the model directory: recipe and ``settings`` (yaml), trained tensors (safetensors), model card.

    A directory of an earlier save is replaced whole; whatever goes wrong before, it stays as it was.
    """
    require_writable(directory)

    def write(fresh: Path) -> None:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.trained.items()}, fresh / WEIGHTS)
        (fresh / WEIGHTS).chmod(fresh.stat().st_mode & 0o666)  # safetensors makes private files; the umask decides
        text = yaml.safe_dump({**_without_bases(model), **settings.to_dict()}, sort_keys=False, allow_unicode=True)
        (fresh / RECIPE).write_text(text, encoding="utf-8")
        (fresh / CARD).write_text(card, encoding="utf-8")

    write_directory_atomically(Path(directory), write)


def _without_bases(model: PrefixLM) -> dict[str, Any]:
    """``describe``, but what a tuned encoder started from is not needed again: all its tensors are saved."""
    described = describe(model)
    for name, part in model.frozen_parts.items():
        if isinstance(part, Encoder) and part.saved and part.can_start_empty:
            frozen_parts.part_options(described["recipe"], name)["model"] = None
            described["parts"][name]["sha256"] = ""
    return described


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
    try:
        for name in {*frozen_parts.part_names(saved["recipe"]), "decoder"}:
            dict(frozen_parts.part_options(saved["recipe"], name))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: its recipe lacks branches, their encoders or the decoder ({error})") from error
    return cast(dict[str, Any], without_sizes(with_current_names(saved)))


def load(directory: Path, parts: dict[str, str] | None = None) -> tuple[PrefixLM, ModelSettings]:
    """The model in ``directory`` and its settings. ``parts``: where frozen parts are now, by name, if they moved.

    Raises InputError for a damaged file, and for frozen parts that are not those it was trained with.
    """
    saved = read_recipe(directory)
    for name, path in (parts or {}).items():
        frozen_parts.relocate(saved["recipe"], name, path)
    frozen_parts.require_present(saved["recipe"], directory)
    model = PrefixLM.from_recipe(saved["recipe"])
    require_same_parts(model, saved, directory)
    load_trained(model, read_tensors(directory), directory / WEIGHTS)
    return model, ModelSettings.from_dict(saved)


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """The trained tensors of a model directory; InputError for a file that is missing or damaged."""
    file = directory / WEIGHTS
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
