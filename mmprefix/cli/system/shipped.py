"""Shipped recipes: what each is for by its header, and what it needs by its content."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmprefix.errors import InputError, did_you_mean

FOLDER = Path(__file__).parents[2] / "recipes"
_FIELD = re.compile(r"([A-Z][a-z]+): +(.*)")  # of a header: "Data:     ESC-10 ..."
_FILES = ("start_from", "vocabulary", "words")  # options of a model that name a file


@dataclass(frozen=True)
class Need:
    """One thing that a recipe needs.

    ``kind``: embedded (in the package), models (in the folder that MMPREFIX_MODELS names), hub (downloaded once),
    file (made or fetched first) or data. ``present``: whether it is on this machine; None where that cannot be told.
    """

    kind: str
    name: str
    present: bool | None


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the package: file, header, what it needs."""

    name: str
    path: Path
    header: str
    title: str
    fields: dict[str, str]
    needs: list[Need]

    @property
    def state(self) -> str:
        """Sentence that says whether it could start in this folder now, and what is not there."""
        missing = [need.name for need in self.needs if need.present is False]
        fetched = [need.name for need in self.needs if need.present is None]
        parts = [f"missing here: {', '.join(missing)}"] if missing else []
        parts += [f"from a hub: {', '.join(fetched)}"] if fetched else []
        return "; ".join(parts) or "ready"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        needs = [vars(need) for need in self.needs]
        return {
            "name": self.name,
            "path": str(self.path),
            "title": self.title,
            **{key.lower(): text for key, text in self.fields.items()},
            "needs": needs,
            "state": self.state,
        }


def recipe_names() -> list[str]:
    """Names of all shipped recipes."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def shipped_recipe(name: str) -> ShippedRecipe:
    """Recipe called ``name``, also with - in the place of _ and with .yaml. Raises InputError with the nearest name."""
    stem = name.removesuffix(".yaml").replace("-", "_")
    path = FOLDER / f"{stem}.yaml"
    if stem not in recipe_names():
        near = did_you_mean(stem, recipe_names()) or f"; recipes: {', '.join(recipe_names())}"
        raise InputError(f"no recipe {name!r}{near}")
    text = path.read_text(encoding="utf-8")
    header = [line.removeprefix("#").removeprefix(" ") for line in text.split("\n")]
    end = next((at for at, line in enumerate(text.split("\n")) if not line.startswith("#")), len(header))
    title, fields = _read_header(header[:end])
    return ShippedRecipe(stem, path, "\n".join(header[:end]), title, fields, list(_needs(yaml.safe_load(text))))


def _read_header(lines: list[str]) -> tuple[str, dict[str, str]]:
    """First paragraph, and the fields (Paper, Data, Frozen, Expected, Cost) with their further lines."""
    end = lines.index("") if "" in lines else len(lines)
    fields: dict[str, str] = {}
    field = ""
    for line in lines[end:]:
        if match := _FIELD.match(line):
            field = match[1]
            fields[field] = match[2]
        elif field and line.startswith(" " * 4):
            fields[field] += f" {line.strip()}"
        else:
            field = ""
    return " ".join(line.strip() for line in lines[:end]), fields


def _needs(recipe: Mapping[str, Any]) -> Iterator[Need]:
    """Frozen parts and files of the model, each once, then the data."""
    seen = set[str]()
    for need in (need for options in _mappings(recipe.get("model")) for need in _parts(options)):
        if need.name not in seen:
            seen.add(need.name)
            yield need
    yield from _data(recipe.get("data") or {})


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for child in children:
        yield from _mappings(child)


def _parts(options: Mapping[str, Any]) -> Iterator[Need]:
    model = options.get("model")
    if isinstance(model, str):
        if "pretrained" in options:
            yield Need("hub", f"open_clip {model}/{options['pretrained']}", None)
        else:
            yield _part(model)
    for name in _FILES:
        if isinstance(options.get(name), str):
            yield Need("file", options[name], Path(options[name]).exists())


def _part(name: str) -> Need:
    if name.startswith("mmprefix:"):
        return Need("embedded", name, (FOLDER.parent / name.removeprefix("mmprefix:")).exists())
    if name.startswith("models:"):
        place = os.environ.get("MMPREFIX_MODELS", "")
        return Need("models", name, bool(place) and (Path(place).expanduser() / name.removeprefix("models:")).exists())
    if name.startswith(("runs/", "weights/")) or name.count("/") > 1:
        return Need("file", name, Path(name).exists())
    return Need("hub", name, True if _in_hub_cache(name) else None)


def _in_hub_cache(name: str) -> bool:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    return (cache / f"models--{name.replace('/', '--')}" / "snapshots").is_dir()


def _data(data: Mapping[str, Any]) -> Iterator[Need]:
    if data.get("class_path", "").startswith("mmprefix.world"):
        return  # made at the first start
    options = data.get("init_args", data)
    if "root" in options:
        yield Need("data", options["root"], Path(options["root"]).is_dir())
        return
    files = [file for split in ("train", "val") for file in _as_list(options.get(split))]
    for file in files:
        yield Need("data", file, Path(file).is_file())
    if not files:
        yield Need("data", "your own manifests (--data.train, --data.val)", False)


def _as_list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
