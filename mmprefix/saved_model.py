"""Saved models: trained tensors, the recipe that rebuilds the rest, and settings; refused where they do not fit.

A model directory holds ``model.safetensors`` (trained tensors only), ``mmprefix.yaml`` (the recipe of all parts, the
identity of the frozen ones: source, revision, hash of the weights; settings) and a model card. A mapper means nothing
to another encoder or decoder, so frozen parts other than those it was trained with are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from mmprefix.atomic import write_directory_atomically
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.model import FrozenParts, PrefixLM
from mmprefix.parts import builder_from_recipe
from mmprefix.trust.option_types import require_types
from mmprefix.weights import frozen_parts, part_places
from mmprefix.weights.recipe_file import FORMAT, read_recipe
from mmprefix.weights.source import RECIPE
from mmprefix.weights.trained_file import TrainedFile, copy_into, file_hash, require_hash

WEIGHTS, CARD = "model.safetensors", "README.md"
R = TypeVar("R")


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
    """Names of the data files that a model was trained and measured on, the figures of its last evaluation, samples.

    A sample has ``input`` (a file's name), ``written`` and ``reference``.
    """

    data: list[str]
    measured_on: str = "val"
    figures: dict[str, float] = field(default_factory=dict[str, float])
    samples: list[dict[str, str]] = field(default_factory=list[dict[str, str]])


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
        license: identifier of the licence of the trained tensors (``mit``, ``apache-2.0`` ...), for the model card.
        language: codes of the languages that it writes (``en`` ...), for the model card.
    """

    generate: GenerateOptions = GenerateOptions()  # noqa: RUF009 (frozen)
    prompt: str | None = None
    trained: TrainingRecord | None = None
    imported: ImportRecord | None = None
    task: Captioning | Understanding | Detection = Captioning()
    license: str | None = None
    language: list[str] = field(default_factory=list[str])

    def portable(self) -> ModelSettings:
        """Settings without paths of this machine: data and imported checkpoints by their names."""
        trained, imported = self.trained, self.imported
        if trained is not None:
            trained = replace(trained, data=[part_places.portable(name) for name in trained.data])
        if imported is not None:
            imported = replace(imported, source=part_places.portable(imported.source))
        return replace(self, trained=trained, imported=imported)

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
        return data | {key: value for key in ("license", "language") if (value := getattr(self, key))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], file: Path | str = RECIPE) -> ModelSettings:
        """The inverse of ``to_dict``; keys that this version does not know are passed over.

        Raises InputError for values that no model can have.
        """
        try:
            trained, imported = data.get("trained"), data.get("imported")
            values: dict[str, Any] = {
                "prompt": data.get("prompt"),
                "license": data.get("license"),
                "language": data.get("language") or [],
            }
            require_types(cls, values, str(file))
            return cls(
                _typed(GenerateOptions, data.get("generate") or {}),
                trained=_typed(TrainingRecord, trained) if trained else None,
                imported=_typed(ImportRecord, imported) if imported else None,
                task=task_from_dict(data),
                **values,
            )
        except InputError as error:
            raise InputError(re.sub("^recipe: ", f"{file}: ", str(error))) from error
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{file}: its settings were changed after they were saved ({error})") from error


def task_from_dict(data: Mapping[str, Any]) -> Captioning | Understanding | Detection:
    """The task that ``data`` names by its keys: ``schema`` and ``framing``, ``answers``, or neither."""
    if schema := data.get("schema"):
        require_types(Understanding, {"schema": schema, "framing": data.get("framing")}, "recipe")
        return Understanding(schema, data.get("framing"))
    if answers := data.get("answers"):
        first, second = answers
        return Detection((str(first), str(second)))
    return Captioning()


def _typed(cls: Callable[..., R], data: Mapping[str, Any]) -> R:
    names = {field.name for field in fields(cast(Any, cls))}
    known = {name: value for name, value in data.items() if name in names}
    require_types(cls, known, "recipe")
    return cls(**known)


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
    """Copies trained tensors into ``model``; raises InputError as ``trained_file.copy_into`` does."""
    copy_into(model.trained, tensors, file)


def require_writable(directory: Path | str) -> None:
    """Refuses a place that ``save`` would not write to: a file, or a directory of other things than a saved model."""
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; give a directory for the model")
    if target.exists() and any(target.iterdir()) and not (target / RECIPE).is_file():
        raise InputError(f"{target}: is not empty and no saved model; give another directory")


def save(
    model: PrefixLM, directory: Path | str, settings: ModelSettings, card: str, *, pack_limit: float | None = None
) -> None:
    """Writes the model directory: recipe and ``settings`` (yaml), trained tensors (safetensors), model card.

    With ``pack_limit`` frozen parts of at most so many MB are copied into it. A directory of an earlier save is
    replaced whole; whatever goes wrong before, it stays as it was.
    """
    require_writable(directory)

    def write(fresh: Path) -> None:
        weights = fresh / WEIGHTS
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.trained.items()}, weights)
        weights.chmod(fresh.stat().st_mode & 0o666)  # safetensors makes private files; the umask decides
        described = _without_bases(model)
        if pack_limit is not None:
            part_places.from_hub_cache(described, pack_limit)
        places = part_places.without_places(described)
        if pack_limit is not None:
            part_places.pack(places, fresh, pack_limit)
        files = [weights, *part_places.packed_files(fresh)]
        described["sha256"] = {file.relative_to(fresh).as_posix(): file_hash(file) for file in files}
        text = yaml.safe_dump({**described, **settings.to_dict()}, sort_keys=False, allow_unicode=True)
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


def load(directory: Path, parts: dict[str, str] | None = None) -> tuple[PrefixLM, ModelSettings]:
    """The model in ``directory`` and its settings. ``parts``: where frozen parts are now, by name, if they moved.

    Sizes that the recipe asks for are compared with the file of tensors before anything is built. Raises InputError for
    a damaged file, and for frozen parts that are not those it was trained with.
    """
    saved = read_recipe(directory)
    settings, file = ModelSettings.from_dict(saved, directory / RECIPE), TrainedFile.open(directory / WEIGHTS)
    recipe, hashes = saved["recipe"], saved.get("sha256", {})
    for packed in part_places.packed_files(directory):
        require_hash(packed, hashes.get(packed.relative_to(directory).as_posix()))
    for name, path in (parts or {}).items():
        frozen_parts.relocate(recipe, name, path)
    part_places.locate(saved, directory)
    frozen_parts.require_present(recipe, directory)

    def build(mapper: dict[str, Any], name: str) -> Callable[[Sizes], Mapper]:
        return file.checked(builder_from_recipe(mapper, Mapper), f"{name}.")

    for name in frozen_parts.filled_parts(recipe):
        file.compare(builder_from_recipe(recipe["branches"][name]["encoder"], Encoder), f"encoders.{name}.")
    if rank := frozen_parts.part_options(recipe, "decoder").get("lora_rank"):
        file.require_dimension("decoder.", "lora_rank", rank)

    def check(frozen: FrozenParts) -> None:
        now = {"recipe": recipe, "parts": {name: part.identity.as_dict() for name, part in frozen.items()}}
        frozen_parts.require_same(now, saved, directory)

    try:
        model = PrefixLM.from_recipe(recipe, build, check)
    except InputError as error:
        raise InputError(re.sub("^recipe: ", f"{directory / RECIPE}: ", str(error))) from error
    load_trained(model, file.tensors(hashes.get(WEIGHTS)), file.path)
    return model, settings


def read_tensors(directory: Path, sha256: dict[str, str] | None = None) -> dict[str, Tensor]:
    """The trained tensors of a model directory; InputError for a file that is missing, damaged or of another hash."""
    return TrainedFile.open(directory / WEIGHTS).tensors((sha256 or {}).get(WEIGHTS))
