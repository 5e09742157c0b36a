"""Declarations of pyproject and contents of a wheel, compared with the source."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
SHELVES = ("encoders", "mappers", "recipes")  # packages below mmprefix that lie beside it


def normal(requirement: str) -> str:
    """Normalised name of a requirement's distribution."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def source_files() -> list[Path]:
    """Python files of the package, each once: below ``mmprefix`` the shelves are links."""
    below = [file for file in (ROOT / "mmprefix").rglob("*.py") if file.resolve().is_relative_to(ROOT / "mmprefix")]
    return [*below, *(file for shelf in SHELVES for file in (ROOT / shelf).rglob("*.py"))]


@cache
def imported() -> dict[str, set[str]]:
    """Other packages' top modules → the files that import them."""
    files: dict[str, set[str]] = {}
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"mmprefix"}:
                files.setdefault(top, set()).add(str(file.relative_to(ROOT)))
    return files


def distributions() -> dict[str, set[str]]:
    """Normalised names of the distributions that hold each imported module."""
    known = packages_distributions()
    return {top: {normal(name) for name in known.get(top, [top])} for top in imported()}


def test_whatever_is_imported_is_declared() -> None:
    declared = {normal(line) for line in PROJECT["dependencies"]}
    optional = {normal(line) for extra, lines in EXTRAS.items() for line in lines if extra != "dev"}
    used = distributions()
    assert {"torch", "lightning", "yaml"} <= used.keys()
    files = imported()
    assert {top: files[top] for top, names in used.items() if not names & (declared | optional)} == {}


def test_whatever_is_declared_is_imported_or_says_why() -> None:
    used = set[str]().union(*distributions().values())
    unused = {normal(line) for line in PROJECT["dependencies"]} - used
    explained = {normal(name) for name in re.findall(r'^    "([\w-]+)[^"]*",  # not imported: \w', TEXT, re.MULTILINE)}
    assert unused == explained


def test_tested_versions_are_pinned() -> None:
    pins = {normal(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line}
    requirements = [
        *PROJECT["dependencies"],
        *(line for lines in EXTRAS.values() for line in lines),
    ]
    assert {normal(line) for line in requirements} - pins == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unpacked wheel, built from a copy of the source by the declared backend."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("mmprefix", *SHELVES):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_a_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    tracked = [ROOT / "mmprefix" / "py.typed", ROOT / "mmprefix" / "cli" / "parts.json"]
    embedded = [file for name in ("frozen/*/*", "trained/*") for file in (ROOT / "mmprefix" / "world").glob(name)]
    data = [*(ROOT / "recipes").rglob("*.yaml"), *embedded, *tracked]
    for file in [*source_files(), *data]:
        name = file.relative_to(ROOT)
        inside = name if name.parts[0] == "mmprefix" else Path("mmprefix") / name
        assert (wheel / inside).read_bytes() == file.read_bytes(), name


def test_a_wheel_tells_index_pages_what_it_is(wheel: Path) -> None:
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    lines = metadata.read_text(encoding="utf-8").splitlines()
    for line in (
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
        "Author: The mmprefix authors",
        "Classifier: Typing :: Typed",
        "Description-Content-Type: text/markdown",
        "Requires-Python: >=3.11",
    ):
        assert line in lines
    for alternative in re.findall(r"^!\[(.*?)\]\(", "\n".join(lines), re.MULTILINE):  # an index page shows it instead
        assert len(alternative.split()) > 5


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--help"], "verbs (details: mmprefix VERB --help):"),
        (["parts", "MLP"], "class_path: mmprefix.mappers.mlp.MLP"),
        (["fit", "--model.decoder.help"], "class_path: mmprefix.decoders.WordDecoder"),
    ],
)
def test_an_unpacked_wheel_answers(wheel: Path, words: list[str], text: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    result = subprocess.run(
        [sys.executable, "-m", "mmprefix", *words],
        cwd=wheel.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    assert text in result.stdout
