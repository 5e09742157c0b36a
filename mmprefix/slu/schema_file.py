"""YAML and JSON files of texts written by people: options by key and type, errors with line or key."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmprefix.errors import InputError, did_you_mean
from mmprefix.trust.plain_yaml import BoundedComposer, require_bounded


@dataclass(frozen=True)
class SchemaSection:
    """Options of a file; ``place`` is the dotted key of this section (with a dot at the end; empty at the top).

    Every method raises InputError that names the whole key, and a wrong value.
    """

    values: Mapping[str, Any]
    place: str = ""

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def allow(self, keys: Sequence[str]) -> SchemaSection:
        """Return itself if it has no other than these ``keys``."""
        for key in self.values:
            if key not in keys:
                close = did_you_mean(key, keys, self.place) or f"; options: {', '.join(keys)}"
                raise InputError(f"{self.place}{key}: not known{close}")
        return self

    def text(self, key: str, default: str) -> str:
        """Text of ``key``, with single spaces; ``default`` without the key."""
        return _text(self.values[key], f"{self.place}{key}") if key in self.values else default

    def texts(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Texts of ``key``, a list of at least one; ``default`` without the key."""
        if key not in self.values:
            return default
        values = self.values[key]
        if not isinstance(values, list):
            raise InputError(f"{self.place}{key}: must be a list of texts, found {_kind(values)}")
        if not values:
            raise InputError(f"{self.place}{key}: the list is empty; give at least one, or leave {key} out")
        return tuple(_text(value, f"{self.place}{key}") for value in values)

    def flag(self, key: str) -> bool:
        """Truth value of ``key``; False without the key."""
        value = self.values.get(key, False)
        if value not in (True, False, "true", "false"):
            raise InputError(f"{self.place}{key}: must be true or false, found {_kind(value)}")
        return value in (True, "true")

    def inside(self, key: str) -> SchemaSection:
        """Section below ``key``; empty without the key or where its value is empty."""
        value, place = self.values.get(key), f"{self.place}{key}"
        if value not in (None, "") and not isinstance(value, dict):
            raise InputError(f"{place}: must hold options, found {_kind(value)}")
        return SchemaSection(value or {}, f"{place}.")

    def each(self, key: str) -> Iterator[tuple[str, SchemaSection]]:
        """Name and section of each entry below ``key``, at least one; none without the key."""
        entries = self.inside(key)
        if key in self.values and not entries.values:
            raise InputError(f"{self.place}{key}: is empty; name at least one, or leave {key} out")
        return ((name, entries.inside(name)) for name in entries.values)


def read_options(file: Path) -> SchemaSection:
    """Options of ``file``: JSON where its name ends in .json, otherwise YAML. A key may occur only once.

    Words stay texts, also those that YAML reads as other types (``yes``, ``on``, ``0``). Raises InputError with the
    line, but without the name of the file.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".json":
            read = json.loads(text, object_pairs_hook=_unique_keys, parse_int=str, parse_float=str, parse_constant=str)
        else:
            read = yaml.load(text, _Texts)
    except OSError as error:
        raise InputError((error.strerror or str(error)).lower()) from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"line {error.lineno}: not JSON ({error.msg})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = error.problem or error.context or ""
        advice = "; put it into quotes" if problem.endswith("'?'") else ""  # a question mark inside [ ]
        raise InputError(f"{line}not YAML ({problem}){advice}") from error
    except yaml.YAMLError as error:
        raise InputError(f"not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise InputError("nested too deeply") from error
    require_bounded(read)
    if not isinstance(read, dict):
        raise InputError(f"expected options, found {_kind(read)}")
    return SchemaSection(read)


class _Texts(BoundedComposer, yaml.BaseLoader):
    """YAML loader that keeps numbers and truth values as texts, and refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = {}
        for key, value in node.value:
            line = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{line}: a key must be a text")
            if key.value in mapping:
                raise InputError(f"{line}: key {key.value!r} is used twice")
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise InputError(f"key {key!r} is used twice")
        mapping[key] = value
    return mapping


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{place}: must be a text, found {_kind(value)}")
    if not value.strip():
        raise InputError(f"{place}: is empty")
    return " ".join(value.split())


def _kind(value: Any) -> str:
    if value in (None, ""):
        return "nothing"
    names = {str: "a text", bool: "a truth value", list: "a list", dict: "options"}
    return f"{names[type(value)]} ({json.dumps(value, ensure_ascii=False)[:40]})"
