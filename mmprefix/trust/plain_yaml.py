"""YAML of strangers as plain data: bounded in size and depth, whatever aliases and nesting ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from mmprefix.errors import InputError

MAX_BYTES = 4 << 20  # of a file
MAX_VALUES = 200_000  # values after aliases are followed: the word list of a decoder is the longest part of a recipe
MAX_DEPTH = 64


def read_yaml(file: Path) -> Any:
    """Plain data of a YAML file: dicts, lists, strings, numbers, booleans and None.

    Raises InputError for a file that is not UTF-8 text or no YAML, for dates and other types, and above the limits.
    """
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{file}: {size:,} bytes are too many; at most {MAX_BYTES:,} are read")
        return parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error


def parse_yaml(text: str, name: str) -> Any:
    """Plain data of YAML ``text``; ``name`` is for the InputError (see ``read_yaml``)."""
    try:
        data = BoundedLoader(text).get_single_data()
        require_bounded(data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise InputError(f"{name}: not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise InputError(f"{name}: nested deeper than {MAX_DEPTH} levels") from error
    return data


class BoundedComposer(Composer):
    """Composer that reads no further than the first value beyond ``MAX_VALUES`` or ``MAX_DEPTH``.

    Raises InputError there. Four megabytes can hold two million values, which take a minute.
    """

    composed = 0
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.composed += 1
        if self.composed > MAX_VALUES:
            raise InputError(f"more than {MAX_VALUES:,} keys and values")
        if self.depth > MAX_DEPTH + 1:  # inside the deepest list stands a value
            raise InputError(f"nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class BoundedLoader(BoundedComposer, SafeConstructor, Resolver):
    """Safe loader that leaves dates as strings, refuses a key that stands there twice, and bounds merge keys (<<).

    libyaml parses where PyYAML has it: five times as fast as PyYAML's own parser.
    """

    def __init__(self, text: str) -> None:
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        events = yaml.CSafeLoader(text) if yaml.__with_libyaml__ else yaml.SafeLoader(text)
        self.check_event, self.peek_event, self.get_event = events.check_event, events.peek_event, events.get_event

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = cast(yaml.MappingNode, super().compose_mapping_node(anchor))
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if before := lines.get((key.tag, key.value)):
                where = f"in line {line}" if before == line else f"in lines {before} and {line}"
                raise yaml.YAMLError(f"{key.value} stands there twice, {where}")
            lines[key.tag, key.value] = line
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            raise InputError(f"more than {MAX_VALUES:,} values once its merge keys are followed")


BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def require_bounded(data: Any) -> None:
    """Raise InputError for nested values deeper than ``MAX_DEPTH``, or more than ``MAX_VALUES`` as a reader meets them.

    An alias counts each time that it is used, at no cost here: the size of what it names is counted once.
    """
    sizes: dict[int, int] = {}

    def size(value: Any, depth: int) -> int:
        if not isinstance(value, dict | list | set | tuple):
            return 1
        if depth > MAX_DEPTH:
            raise InputError(f"nested deeper than {MAX_DEPTH} levels")
        if id(value) not in sizes:
            sizes[id(value)] = MAX_VALUES + 1  # a value inside itself has no end
            inner = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(item, depth + 1) for item in cast("Any", inner))
        if sizes[id(value)] > MAX_VALUES:
            raise InputError(f"more than {MAX_VALUES:,} values once its aliases are followed")
        return sizes[id(value)]

    size(data, 0)
