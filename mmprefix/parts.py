"""Parts: classes that record their constructor arguments, so that a model can be written as a recipe and rebuilt.

Encoders, mappers and decoders are parts. ``to_recipe(part)`` gives ``{class_path, init_args}``, the form that the
Lightning CLI reads; ``from_recipe(recipe, contract)`` builds the part again. Nothing is declared twice.

A class path in a recipe or a saved model is public and does not depend on the file of the class:
``mmprefix.decoders.CausalDecoder``. ``RENAMED``, ``DROPPED`` and ``ADDED`` keep recipes of earlier versions readable. A
recipe may come from a stranger: only trusted modules, and those that the user allows, are imported
(``mmprefix.trust.modules``).
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeGuard, TypeVar

from mmprefix.errors import InputError
from mmprefix.trust.modules import require_allowed
from mmprefix.trust.option_types import require_types

P = TypeVar("P", bound="Part")

RENAMED = {  # class path of an earlier version → current one
    "mmprefix.checkpoint_io.AtomicCheckpointIO": "mmprefix.training.AtomicCheckpointIO",
    "mmprefix.decoder.CausalDecoder": "mmprefix.decoders.CausalDecoder",
    "mmprefix.mappers.deep.Deep": "mmprefix.mappers.prefix_tuning.Deep",
    "mmprefix.mappers.deep.DeepTable": "mmprefix.mappers.p_tuning_v2.DeepTable",
    "mmprefix.questioned.QuestionData": "mmprefix.slu.QuestionData",
    "mmprefix.seq2seq.CrossDecoder": "mmprefix.decoders.CrossDecoder",
    "mmprefix.streaming.StreamData": "mmprefix.features.StreamData",
    "mmprefix.task.PrefixTask": "mmprefix.training.PrefixTask",
    "mmprefix.unfreeze.UnfreezeUntil": "mmprefix.training.UnfreezeUntil",
    "mmprefix.world.data.WorldData": "mmprefix.world.WorldData",
    "mmprefix.words.WordDecoder": "mmprefix.decoders.WordDecoder",
}

_SIZES = ("dim", "pooled_dim", "width")
DROPPED = {  # class path → options of earlier versions whose values now come from encoder and decoder (``Sizes``)
    **{
        f"mmprefix.mappers.{name}": _SIZES
        for name in ("learned.Learned", "linear.Linear", "minmax.MinMax", "mlp.MLP", "parallel.Parallel")
    },
    **{
        f"mmprefix.mappers.{name}": _SIZES
        for name in ("prefix_aac.PrefixAAC", "resampler.Resampler", "transformer.Transformer")
    },
    **{
        f"mmprefix.mappers.{name}": (*_SIZES, "layers", "heads", "head_width")
        for name in ("prefix_tuning.Deep", "p_tuning_v2.DeepTable")
    },
}

ADDED = {"mmprefix.encoders.text.Text": {"long_lists": "oldest"}}
"""Class path → options that earlier versions did not have, and the values by which they computed."""


def with_current_names(data: Any) -> Any:
    """Plain ``data`` (dicts, lists, strings ...) with class paths of earlier versions replaced by current ones."""
    if _is_dict(data):
        return {key: with_current_names(value) for key, value in data.items()}
    if _is_list(data):
        return [with_current_names(value) for value in data]
    return RENAMED.get(data, data) if isinstance(data, str) else data


def without_sizes(data: Any) -> Any:
    """Plain ``data`` without the options in ``DROPPED``, which saved models of earlier versions hold."""
    if _is_dict(data):
        items = {key: without_sizes(value) for key, value in data.items()}
        dropped, options = DROPPED.get(str(items.get("class_path"))), items.get("init_args")
        if dropped and _is_dict(options):
            items["init_args"] = {name: value for name, value in options.items() if name not in dropped}
        return items
    return [without_sizes(value) for value in data] if _is_list(data) else data


def with_added_options(data: Any) -> Any:
    """Plain ``data`` of what was saved, with the options in ``ADDED`` that it was saved without."""
    if _is_dict(data):
        items = {key: with_added_options(value) for key, value in data.items()}
        added, options = ADDED.get(str(items.get("class_path"))), items.get("init_args")
        if added and _is_dict(options):
            items["init_args"] = {**options, **{name: value for name, value in added.items() if name not in options}}
        return items
    return [with_added_options(value) for value in data] if _is_list(data) else data


def _is_dict(data: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(data, dict)


def _is_list(data: Any) -> TypeGuard[list[Any]]:
    return isinstance(data, list)


def _is_tuple(data: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(data, tuple)


def lazy_exports(package: str, names: dict[str, str]) -> Callable[[str], Any]:
    """Module ``__getattr__`` (PEP 562) of ``package``: imports each public name from its file at first use."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    return get


def class_path(cls: type) -> str:
    """Public path of a class: that of the package which exports it, otherwise that of its file."""
    package = sys.modules.get(cls.__module__.rpartition(".")[0])
    public = package is not None and cls.__qualname__ in getattr(package, "__all__", ())
    return f"{package.__name__ if public and package else cls.__module__}.{cls.__qualname__}"


class Part:
    """Base class of parts: their constructor arguments are plain values, lists, dicts or other parts.

    A subclass may declare:

    - ``path_options``: options that may name a file or folder on disk; a saved model holds the name of that alone.
    - ``source_options``: options for the location and precision of weights, which do not change the computation; a
      saved model may be loaded with other values.
    - ``wraps``: option that holds the part which owns the weights (the picture encoder in a video encoder).
    - ``deferred``: the first constructor argument is not in a recipe, but comes from the model that owns the part.
      Its recipe is then a function of that argument (``builder_from_recipe``).
    """

    path_options: ClassVar[tuple[str, ...]] = ("model",)
    source_options: ClassVar[tuple[str, ...]] = ("model", "revision", "pretrained", "dtype")
    wraps: ClassVar[str | None] = None
    deferred: ClassVar[bool] = False
    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        part = super().__new__(cls)
        object.__setattr__(part, "init_args", _bind(cls, part, args, kwargs))
        return part

    def recipe_args(self) -> dict[str, Any]:
        """Constructor arguments in the recipe; override where it needs other values than the ones passed."""
        return dict(self.init_args)


def _bind(cls: type, part: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(cls.__init__)
    try:
        bound = signature.bind(part, *args, **kwargs)
    except TypeError:  # a copy or an unpickled part, whose state follows; or arguments that __init__ itself refuses
        return {}
    bound.apply_defaults()
    arguments = dict(list(bound.arguments.items())[1:])
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:  # the members of **options are arguments like the others
            arguments |= arguments.pop(name)
    return arguments


def to_recipe(value: Any) -> Any:
    """Plain data of ``value``: parts as ``{class_path, init_args}``, paths as strings, containers converted inside."""
    if isinstance(value, Part):
        args = {name: to_recipe(item) for name, item in value.recipe_args().items()}
        return {"class_path": class_path(type(value)), "init_args": args}
    if _is_dict(value):
        return {str(key): to_recipe(item) for key, item in value.items()}
    if _is_list(value) or _is_tuple(value):
        return [to_recipe(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_recipe(data: dict[str, Any], contract: type[P]) -> P:
    """Build the part that ``data`` (``{class_path, init_args}``) describes.

    Raises InputError when the class cannot be imported, is not a subclass of ``contract``, or refuses its arguments. A
    recipe may come from an untrusted source, so only parts of the requested class are ever called.
    """
    return builder_from_recipe(data, contract)()


def builder_from_recipe(data: dict[str, Any], contract: type[P]) -> Callable[..., P]:
    """Constructor of the part that ``data`` describes; for a ``deferred`` part a function of its first argument.

    Raises InputError as ``from_recipe`` does: for class and option names immediately, for values when called.
    """
    if not _is_dict(data):
        raise InputError(f"recipe: {str(data)[:60]!r} is no part; give class_path and init_args")
    data = without_sizes(with_current_names(data))
    path = str(data.get("class_path", ""))
    cls = resolve_class(path, contract)
    options: Any = data.get("init_args") or {}
    if not _is_dict(options):
        raise InputError(f"recipe: {path}: init_args holds no options by name")
    arguments = {name: _rebuild(value) for name, value in options.items()}
    try:
        inspect.signature(cls).bind_partial(**arguments)
    except TypeError as error:
        raise InputError(f"recipe: {path}: {error}") from error
    require_types(cls, options, f"recipe: {path}")

    def build(*first: Any) -> P:
        try:
            return cls(*first, **arguments)
        except TypeError as error:
            raise InputError(f"recipe: {path}: {str(error).splitlines()[0]}") from error

    return build


def resolve_class(path: str, contract: type[P]) -> type[P]:
    """Import the class at ``path``, current or of an earlier version.

    Raises InputError unless its module is allowed, and unless it is a ``contract``.
    """
    path = RENAMED.get(path, path)
    require_allowed(path)
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"recipe: class_path {path!r} cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise InputError(f"recipe: class_path {path!r} is not a subclass of {contract.__name__}")
    return cls


def _rebuild(value: Any) -> Any:
    if _is_list(value):
        return [_rebuild(item) for item in value]
    if not _is_dict(value):
        return value
    if "class_path" not in value:
        return {name: _rebuild(item) for name, item in value.items()}
    build = builder_from_recipe(value, Part)
    return build if resolve_class(str(value["class_path"]), Part).deferred else build()
