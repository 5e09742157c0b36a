"""Requirements of the package by extra, and whether the installed distributions meet them. Nothing is imported.

They are read from the ``pyproject.toml`` beside the package where there is one (an editable install's metadata may be
older), otherwise from the metadata of the installed distribution.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

CORE = ""
"""Extra of the requirements without which nothing runs."""
_SOURCE = Path(__file__).parents[3] / "pyproject.toml"
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;()]*)\)?\s*(?:;(.*))?")
_BOUND = re.compile(r"(~=|==|!=|<=|>=|<|>)\s*([0-9][\w.!+*-]*)")


@dataclass(frozen=True)
class Requirement:
    """A distribution with the bounds of its version, such as ">=5.20,<6"; ``installed``: its version here, or None."""

    name: str
    bounds: str
    installed: str | None

    @property
    def met(self) -> bool:
        """True if it is installed in a version within the bounds."""
        return self.installed is not None and within(self.installed, self.bounds)

    def __str__(self) -> str:
        return f"{self.name}{self.bounds}"


def requirements() -> dict[str, list[Requirement]]:
    """Requirements by extra, those of the package itself under ``CORE``; empty where no metadata is to be had."""
    lines = _of_source() or _of_metadata()
    return {extra: [requirement(line) for line in texts] for extra, texts in lines.items()}


def requirement(text: str) -> Requirement:
    """Requirement that ``text`` ("av>=18", "torch (>=2.9)") names. Raises ValueError for none."""
    match = _REQUIREMENT.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no requirement")
    return Requirement(match[1], match[2].strip().replace(" ", ""), version_of(match[1]))


def version_of(name: str) -> str | None:
    """Installed version of the distribution ``name``; None where it is not installed or its metadata is damaged."""
    try:
        return metadata.version(name)
    except Exception:  # PackageNotFoundError, and whatever a damaged folder of metadata raises
        return None


def within(version: str, bounds: str) -> bool:
    """True if ``version`` lies within ``bounds`` (PEP 440's operators on release numbers; == takes a .* too)."""
    own = _numbers(version)
    for operator, text in _BOUND.findall(bounds):
        bound = _numbers(text)
        width = max(len(own), len(bound))
        left, right = (part + (0,) * (width - len(part)) for part in (own, bound))
        same = own[: len(bound)] == bound if text.endswith("*") else left == right
        allowed = {
            ">=": left >= right, "<=": left <= right, ">": left > right, "<": left < right, "==": same, "!=": not same,
            "~=": left >= right and own[: len(bound) - 1] == bound[:-1],
        }  # fmt: skip
        if not allowed[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """Release numbers of a version: "2.9.1+cpu" and "2.9.1rc1" → (2, 9, 1)."""
    match = re.match(r"\d+(?:\.\d+)*", version.partition("!")[2] or version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _of_source() -> dict[str, list[str]]:
    try:
        project = tomllib.loads(_SOURCE.read_text(encoding="utf-8"))["project"]
        if project["name"] != "mmprefix":
            return {}
        return {CORE: project["dependencies"], **project["optional-dependencies"]}
    except (OSError, KeyError, ValueError):
        return {}


def _of_metadata() -> dict[str, list[str]]:
    try:
        lines = metadata.requires("mmprefix") or []
    except Exception:  # not installed, or damaged
        return {}
    extras: dict[str, list[str]] = {CORE: []}
    for line in lines:
        match = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", line)
        extras.setdefault(match[1] if match else CORE, []).append(line.partition(";")[0].strip())
    return extras
