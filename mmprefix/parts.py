"""Parts record their constructor arguments, so that any model can be written as a recipe and built again.

Encoders, mappers and decoders are parts. ``to_recipe(part)`` gives ``{class_path, init_args}``, the form that the
Lightning CLI reads; ``from_recipe(recipe, contract)`` gives the part back. Nothing is declared twice.

A class path in a recipe or a saved model is public: ``mmprefix.decoders.CausalDecoder``, in whichever file the class
is. ``RENAMED`` keeps the paths of earlier versions readable, ``DROPPED`` their options.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from mmprefix.errors import InputError

P = TypeVar("P", bound="Part")

RENAMED = {  # class path of an earlier version → today's
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
DROPPED = {  # class path → options of an earlier version that are now taken from encoder and decoder (``Sizes``)
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


def with_current_names(data: Any) -> Any:
    """``data`` (plain: dicts, lists, strings ...) with every class path of an earlier version replaced by today's."""
    if isinstance(data, dict):
        return {key: with_current_names(value) for key, value in cast(dict[Any, Any], data).items()}
    if isinstance(data, list):
        return [with_current_names(value) for value in cast(list[Any], data)]
    return RENAMED.get(data, data) if isinstance(data, str) else data


def without_sizes(data: Any) -> Any:
    """``data`` without the options in ``DROPPED``, which saved models of earlier versions hold."""
    if isinstance(data, dict):
        items = {key: without_sizes(value) for key, value in cast(dict[Any, Any], data).items()}
        dropped, options = DROPPED.get(str(items.get("class_path"))), items.get("init_args")
        if dropped and isinstance(options, dict):
            options = cast(dict[str, Any], options)
            items["init_args"] = {name: value for name, value in options.items() if name not in dropped}
        return items
    return [without_sizes(value) for value in cast(list[Any], data)] if isinstance(data, list) else data


def lazy_exports(package: str, names: dict[str, str]) -> Callable[[str], Any]:
    """Module ``__getattr__`` (PEP 562) for ``package``: public names, each imported from its file at first use."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    return get


def class_path(cls: type) -> str:
    """Public path of a class: of the package that exports it, else of its file."""
    package = sys.modules.get(cls.__module__.rpartition(".")[0])
    public = package is not None and cls.__qualname__ in getattr(package, "__all__", ())
    return f"{package.__name__ if public and package else cls.__module__}.{cls.__qualname__}"


class Part:
    """Base of building blocks whose constructor arguments are plain values, lists, dicts or other parts.

    A subclass may declare:

    - ``path_options``: options that can name a file or folder on disk; a saved model holds them as absolute paths.
    - ``source_options``: options that say where weights are and in which precision they are loaded, not what is
      computed from them; a saved model may be loaded with others.
    - ``wraps``: the option that holds the part whose weights these are (the picture encoder in a video encoder).
    - ``deferred``: the first constructor argument is not in a recipe, but given by the model that the part belongs to.
      Its recipe then becomes a function of that argument (``builder_from_recipe``).
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
        """Constructor arguments for the recipe; override where it should hold other values than were passed."""
        return dict(self.init_args)


def _bind(cls: type, part: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(cls.__init__)
    try:
        bound = signature.bind(part, *args, **kwargs)
    except TypeError:  # a copy or an unpickled part, whose state follows; or a call that __init__ itself refuses
        return {}
    bound.apply_defaults()
    arguments = dict(list(bound.arguments.items())[1:])
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:  # **more: its members are arguments like any other
            arguments |= arguments.pop(name)
    return arguments


def to_recipe(value: Any) -> Any:
    """``value`` as plain data: parts become ``{class_path, init_args}``, paths strings, containers are walked."""
    if isinstance(value, Part):
        args = {name: to_recipe(item) for name, item in value.recipe_args().items()}
        return {"class_path": class_path(type(value)), "init_args": args}
    if isinstance(value, dict):
        return {str(key): to_recipe(item) for key, item in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [to_recipe(item) for item in cast(list[Any], value)]
    return str(value) if isinstance(value, Path) else value


def from_recipe(data: dict[str, Any], contract: type[P]) -> P:
    """Build the part that ``data`` (``{class_path, init_args}``) describes.

    Raises InputError when the class cannot be imported, is no ``contract``, or refuses its arguments: a recipe
    may come from a stranger, so nothing but a part of the wanted kind is ever called.
    """
    return builder_from_recipe(data, contract)()


def builder_from_recipe(data: dict[str, Any], contract: type[P]) -> Callable[..., P]:
    """Constructor of the part that ``data`` describes, for a ``deferred`` part a function of its first argument.

    Raises InputError as ``from_recipe`` does: for class and option names at once, for values when it is called.
    """
    data = cast(dict[str, Any], without_sizes(with_current_names(data)))
    path = str(data.get("class_path", ""))
    cls = resolve_class(path, contract)
    options = cast(dict[str, Any], data.get("init_args") or {})
    arguments = {name: _rebuild(value) for name, value in options.items()}
    try:
        inspect.signature(cls).bind_partial(**arguments)
    except TypeError as error:
        raise InputError(f"recipe: {path}: {error}") from error

    def build(*first: Any) -> P:
        try:
            return cls(*first, **arguments)
        except TypeError as error:
            raise InputError(f"recipe: {path}: {error}") from error

    return build


def resolve_class(path: str, contract: type[P]) -> type[P]:
    """Import the class at ``path``, today's or an earlier one. Raises InputError where it is no ``contract``."""
    path = RENAMED.get(path, path)
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"recipe: class_path {path!r} cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise InputError(f"recipe: class_path {path!r} is no {contract.__name__}")
    return cls


def _rebuild(value: Any) -> Any:
    if isinstance(value, list):
        return [_rebuild(item) for item in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    items = cast(dict[str, Any], value)
    if "class_path" not in items:
        return {name: _rebuild(item) for name, item in items.items()}
    build = builder_from_recipe(items, Part)
    return build if resolve_class(str(items["class_path"]), Part).deferred else build()
