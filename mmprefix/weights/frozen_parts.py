"""Frozen parts in a recipe: where their weights are, and whether they are those that a model was trained with.

A recipe is plain data: ``branches`` (name → ``encoder``, ``mapper``), ``decoder`` and perhaps ``transcriber``. A frozen
part is named by its branch, "decoder" or "transcriber"; its class says which options are paths (``Part.path_options``)
and which only say where weights come from (``Part.source_options``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from mmprefix.errors import InputError
from mmprefix.parts import Part, resolve_class, with_added_options, with_current_names
from mmprefix.weights.source import absolute

_OWN = ("decoder", "transcriber")  # frozen parts that are no branch's encoder
PACKED = "parts"  # folder of a model directory for frozen parts
_LOCAL = "local-dir:"  # open_clip's mark of a folder; it reads the plain folder too


def part_names(recipe: dict[str, Any]) -> list[str]:
    """Names of the frozen parts of a recipe."""
    return [*recipe["branches"], *(name for name in _OWN if name in recipe)]


def part_options(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """The ``init_args`` that hold the weights of the frozen part ``name``, to be read or changed.

    A part that wraps another one (``Part.wraps``) has its weights.
    """
    return _weights_part(recipe, name)["init_args"]


def filled_parts(recipe: dict[str, Any]) -> list[str]:
    """Names of the branches whose encoder was tuned and starts empty: the file of trained tensors has all of it."""
    tuned = [name for name, branch in recipe["branches"].items() if branch.get("tuned")]
    return [name for name in tuned if part_options(recipe, name).get("model") is None]


def absolute_paths(value: Any, options: tuple[str, ...] = ()) -> Any:
    """A recipe with absolute paths wherever an option in its class's ``path_options`` names a file or folder."""
    if isinstance(value, dict):
        paths = _class(value).path_options if "class_path" in value else ()
        arguments = {key: _absolute(item) if key in options else item for key, item in value.items()}
        return {key: absolute_paths(item, paths if key == "init_args" else ()) for key, item in arguments.items()}
    return [absolute_paths(item) for item in value] if isinstance(value, list) else value


def require_same(now: dict[str, Any], saved: dict[str, Any], file: Path | str) -> None:
    """Refuses, by name, the first frozen part that is not the one in ``saved``.

    Both are {"recipe", "parts"}; "parts" holds source, revision and sha256 by name.
    """
    saved = with_added_options(with_current_names(saved))
    for name in sorted(now["parts"].keys() | saved.get("parts", {}).keys()):
        old, new = saved.get("parts", {}).get(name), now["parts"].get(name)
        if new is None:
            raise InputError(f"{file}: was trained with the {title(name)}, which this model does not have")
        if old is None:
            raise InputError(f"{file}: was trained without the {title(name)}, which this model has")
        if old["sha256"] != new["sha256"]:
            raise InputError(
                f"{file}: was trained with the {title(name)} {old['source']!r} (sha256 {old['sha256'][:12]}), "
                f"but this one is {new['source']!r} (sha256 {new['sha256'][:12]}); use the same weights"
            )
        _require_same_options(_part(saved["recipe"], name), _part(now["recipe"], name), title(name), file)


def relocate(recipe: dict[str, Any], name: str, path: str) -> None:
    """Enters in ``recipe`` that the weights of the frozen part ``name`` are at ``path`` now; InputError for no part."""
    if name not in part_names(recipe):
        raise InputError(f"part {name!r}: this model has {', '.join(part_names(recipe))}")
    options = part_options(recipe, name)
    options[next(reversed(_weight_paths(recipe, name)), "model")] = path
    if "revision" in options:
        options["revision"] = None


def require_present(recipe: dict[str, Any], directory: Path) -> None:
    """Refuses a recipe whose weights are not where they were; the message says how to name the new path."""
    for name in part_names(recipe):
        for path in _weight_paths(recipe, name).values():
            if not path.exists():
                raise InputError(
                    f"{directory}: the {title(name)} is not at {path}; say where it is now: "
                    f"--part {name}=PLACE in the shell, parts={{{name!r}: PLACE}} in Python"
                )


def title(name: str) -> str:
    """Words for the frozen part ``name``."""
    return name if name in _OWN else f"encoder of branch {name!r}"


def path_values(recipe: dict[str, Any], name: str) -> list[tuple[dict[str, Any], str, str]]:
    """Options of the frozen part ``name`` that may be paths: where each stands, its name and its text."""
    part = _weights_part(recipe, name)
    options = part["init_args"]
    texts = ((option, options.get(option)) for option in _class(part).path_options)
    return [(options, option, text) for option, text in texts if isinstance(text, str)]


def local_paths(recipe: dict[str, Any], name: str) -> list[tuple[dict[str, Any], str, Path]]:
    """Those of ``path_values`` that are absolute paths."""
    values = ((options, option, text.removeprefix(_LOCAL)) for options, option, text in path_values(recipe, name))
    return [(options, option, Path(text)) for options, option, text in values if Path(text).is_absolute()]


def _part(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    return recipe[name] if name in _OWN else recipe["branches"][name]["encoder"]


def _weights_part(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    part = _part(recipe, name)
    while wrapped := _class(part).wraps:
        part = part["init_args"][wrapped]
    return part


def _class(part: dict[str, Any]) -> type[Part]:
    """The class of a part in a recipe; ``Part`` itself for what is none: ``from_recipe`` refuses it, with its name."""
    try:
        return resolve_class(str(part["class_path"]), Part)
    except InputError:
        return Part


def _weight_paths(recipe: dict[str, Any], name: str) -> dict[str, Path]:
    """The options of a frozen part that hold a path of weights on disk, in the order of ``path_options``."""
    part = _weights_part(recipe, name)
    cls, options = _class(part), part["init_args"]
    paths = {option: Path(str(options.get(option))) for option in cls.path_options if option in cls.source_options}
    return {option: path for option, path in paths.items() if path.is_absolute() or path.parent == Path(PACKED)}


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(item) for item in cast(list[Any], value)]
    if isinstance(value, str) and (plain := value.removeprefix(_LOCAL)) and Path(plain).expanduser().exists():
        return str(absolute(Path(plain)))
    return value


def _require_same_options(was: dict[str, Any], now: dict[str, Any], title: str, file: Path | str) -> None:
    if was["class_path"] != now["class_path"]:
        raise InputError(
            f"{file}: was trained with the {title} as a {was['class_path']}, but this one is a {now['class_path']}"
        )
    cls = _class(now)
    for option, value in was["init_args"].items():
        if option == cls.wraps:
            _require_same_options(value, now["init_args"][option], title, file)
        elif option not in cls.source_options and now["init_args"].get(option) != value:
            raise InputError(
                f"{file}: the {title} was trained with {option}={_short(value)}, "
                f"but this one has {option}={_short(now['init_args'].get(option))}"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]} ... ({len(value)} in all)"
