"""Recipe → its frozen parts as they come, without anything that training would change: the zero-shot baseline.

The task's prefix and the mappers of branches are left out, for random ones would only disturb; a cartridge stays. What
is left is a pretrained model with its prompt or question: a Whisper that reads its encoder's frames, a language model
that reads a text.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from mmprefix.decoders.base import Decoder
from mmprefix.distillation.cartridge_prefix import CartridgePrefix
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.base import Mapper
from mmprefix.model import Branch, PrefixLM
from mmprefix.parts import builder_from_recipe, from_recipe, resolve_class
from mmprefix.prompt_template import PromptTemplate
from mmprefix.saved_model import ModelSettings
from mmprefix.slu.schema import portable
from mmprefix.transcriber import Transcriber
from mmprefix.trust.modules import allow_modules
from mmprefix.weights import frozen_parts
from mmprefix.weights.devices import best_device, default_dtype, require_device

if TYPE_CHECKING:
    from mmprefix.inference.loading import Beside

log = logging.getLogger(__name__)
_DATA, _MODEL = ("schema", "framing", "prompt"), ("generate", "answers")


def load_recipe(
    recipe: Any,
    file: Path,
    beside: Beside | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    parts: Mapping[str, str] | None = None,
    allow: Sequence[str] = (),
) -> Predictor:
    """Predictor of a ``recipe`` (the plain data of ``file``); see ``untrained_model`` and ``mmprefix.load``.

    ``beside``: users and neighbours.
    """
    target = require_device(device or best_device())
    with allow_modules(allow):
        model, settings = untrained_model(recipe, file, parts)
    known: Beside = beside or {"users": None, "neighbours": None}
    return Predictor(model, settings, str(file), **known).to(target, default_dtype(dtype, target))


def untrained_model(recipe: Any, file: Path, parts: Mapping[str, str] | None = None) -> tuple[PrefixLM, ModelSettings]:
    """Model of a ``recipe`` (the plain data of ``file``) without prefix and mappers, and its settings.

    ``parts``: where frozen parts are now, by name. Raises InputError for a recipe without a model, and for one whose
    decoder reads a branch through its mapper alone.
    """
    model, data = _options(recipe, "model"), _options(recipe, "data")
    if "decoder" not in model:
        raise InputError(f"{file}: no recipe: it names no model with a decoder")
    for name, place in (parts or {}).items():
        frozen_parts.relocate(model, name, place)
    cartridge = model["prefix"] if _is_cartridge(model.get("prefix")) else None
    left_out = ["the prefix"] if model.get("prefix") and cartridge is None else []
    left_out += [f"the mapper of {name}" for name, branch in _branches(model).items() if branch.get("mapper")]
    built = _build(model, file, cartridge)
    kept = " but its cartridge" if cartridge else ""
    without = f"; without {', '.join(left_out)}" if left_out else ""
    log.warning("%s: a recipe, so that nothing is trained%s%s", file, kept, without)
    options = _options(data, "init_args") or data
    if options.get("slots") is False and options.get("schema"):
        options = options | {"schema": portable(options["schema"], slots=False)}
    chosen: dict[str, Any] = {name: options.get(name) for name in _DATA} | {name: model.get(name) for name in _MODEL}
    return built, ModelSettings.from_dict({name: value for name, value in chosen.items() if value is not None}, file)


def _options(data: Any, name: str) -> dict[str, Any]:
    """Options below ``name`` in plain ``data``; none where it has none."""
    inside = data.get(name) if _is_dict(data) else None
    return inside if _is_dict(inside) else {}


def _is_dict(data: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(data, dict)


def _branches(model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return model.get("branches") or {}


def _build(model: Mapping[str, Any], file: Path, cartridge: Mapping[str, Any] | None) -> PrefixLM:
    decoder = from_recipe(model["decoder"], Decoder)
    for name, branch in _branches(model).items():
        if "encoder" not in branch:
            raise InputError(f"{file}: model.branches.{name} has no encoder")
        if branch.get("mapper") and decoder.memory_dim is None:
            raise InputError(
                f"{file}: the decoder {decoder.identity.source!r} reads {name} through its mapper alone, which is "
                "untrained; train it with mmprefix fit"
            )
    branches = {name: Branch(from_recipe(branch["encoder"], Encoder)) for name, branch in _branches(model).items()}
    transcriber = from_recipe(model["transcriber"], Transcriber) if model.get("transcriber") else None
    wording = PromptTemplate(**_options(model, "wording"))
    prefix = None if cartridge is None else builder_from_recipe(dict(cartridge), Mapper)
    built = PrefixLM(branches, decoder, prefix, wording=wording, transcriber=transcriber)
    if isinstance(built.task_prefix, CartridgePrefix):
        built.task_prefix.begin(decoder)
    return built


def _is_cartridge(prefix: Any) -> bool:
    """True for the recipe of a prefix that needs no training."""
    path = prefix.get("class_path") if _is_dict(prefix) else None
    return path is not None and issubclass(resolve_class(str(path), Mapper), CartridgePrefix)
