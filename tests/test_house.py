"""The rules of the house, checked on its own source: layout, sizes, names, docstrings, signatures."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from mmprefix.parts import RENAMED

ROOT = Path(__file__).resolve().parents[1]
SPINE = {
    "__init__",
    "__main__",
    "atomic",
    "errors",
    "interrupt",
    "model",
    "parts",
    "prompt_template",
    "saved_model",
    "transcriber",
    "types",
    "version",
}
SHELVES = ("encoders", "mappers", "mmprefix/metrics")  # one file a family, a paper or a measure: as many as there are
RIDDLES = {"found", "told", "said", "given", "heard", "looked", "here", "there"}
INVERTED = ("What ", "Whether ", "Where ", "Who ", "The same ", "Of ", "As ")
RECIPE_CLASSES = {
    "Part",
    "Encoder",
    "Mapper",
    "Decoder",
    "ComposedDecoder",
    "LightningModule",
    "GradientFreeSteps",
    "LightningDataModule",
    "PairData",
    "MadeData",
    "UserRows",
    "Callback",
}
DEBTS: dict[str, dict[str, int]] = json.loads((ROOT / "tests" / "house_debts.json").read_text(encoding="utf-8"))
SOURCE = ("mmprefix", "encoders", "mappers", "recipes", "benchmarks")


def python_files(*folders: str) -> list[Path]:
    """Every file of ours below ``folders``; the links from ``mmprefix`` to the shelves are not followed."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return [file for file in files if not any((ROOT / part).is_symlink() for part in file.relative_to(ROOT).parents)]


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(parsed(file)))


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def functions(
    tree: ast.AST, owner: ast.ClassDef | None = None
) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    """Every function, with the class that it is a method of."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield node, owner
        yield from functions(node, node if isinstance(node, ast.ClassDef) else None)


def owed(rule: str, places: Iterable[str]) -> dict[str, int]:
    """Breaches of ``rule`` by file beyond those in house_debts.json, a list that may only shrink."""
    debts = DEBTS.get(rule, {})
    return {file: count for file, count in Counter(places).items() if count > debts.get(file, 0)}


def test_the_list_of_debts_only_shrinks() -> None:
    """No debt of a file that is gone; what was paid is struck off."""
    files = {name_of(file) for file in python_files(*SOURCE, "tests")}
    assert {file for debts in DEBTS.values() for file in debts} - files == set()


def test_the_top_folder_is_the_spine() -> None:
    assert {file.stem for file in (ROOT / "mmprefix").glob("*.py")} == SPINE
    assert len(SPINE) <= 12
    assert {entry.name for entry in (ROOT / "mmprefix").iterdir() if entry.is_file() and entry.suffix != ".py"} == {
        "py.typed"
    }


def test_no_folder_holds_more_than_fifteen_files() -> None:
    folders = {file.parent for file in python_files("mmprefix", "recipes", "benchmarks")}
    sizes = {name_of(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: size for name, size in sizes.items() if size > 15 and name not in SHELVES} == {}


def test_no_file_is_longer_than_300_lines() -> None:
    sizes = {name_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in python_files(*SOURCE)}
    assert owed("long files", (name for name, size in sizes.items() if size > 300)) == {}


def test_no_function_is_longer_than_40_lines() -> None:
    """Lines of code: a docstring and a signature of one line an option do not count."""
    long = []
    for file in python_files(*SOURCE):
        for function, _ in functions(parsed(file)):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            lines = function.end_lineno - body[0].lineno + 1 if body and function.end_lineno else 0
            if lines > 40:
                long.append(name_of(file))
    assert owed("long functions", long) == {}


def test_a_class_name_occurs_once() -> None:
    places: dict[str, list[str]] = {}
    for file in python_files(*SOURCE):
        for node in parsed(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(file))
    assert owed("class names", (file for files in places.values() if len(files) > 1 for file in files)) == {}


def test_tests_mirror_the_packages() -> None:
    packages = {folder.name for folder in (ROOT / "mmprefix").iterdir() if (folder / "__init__.py").exists()}
    folders = {folder.name for folder in (ROOT / "tests").iterdir() if any(folder.glob("test_*.py"))}
    assert packages - folders == set()
    assert folders - packages == {"benchmarks", "gpu", "parity", "recipes", "system"}


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_a_renamed_class_path_leads_to_a_class(old: str) -> None:
    module, _, name = RENAMED[old].rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)
    assert old not in RENAMED.values()


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over this checkout with the contracts in ``config``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    return subprocess.run(
        [*words, "--config", str(config), "--no-cache"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_arrow_points_down() -> None:
    result = lint_imports(ROOT / "pyproject.toml")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("room", ["fast", "encoders", "metrics"])
def test_a_package_without_a_floor_is_refused(room: str, tmp_path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts = text[text.index("[tool.importlinter]") :]
    less = re.sub(rf"{room} \| |    \"{room}\",\n", "", contracts, count=1)
    assert less != contracts
    (tmp_path / "pyproject.toml").write_text(less, encoding="utf-8")
    result = lint_imports(tmp_path / "pyproject.toml")
    assert result.returncode == 1
    assert f"- mmprefix.{room}" in result.stdout


def test_the_picture_of_the_rooms_is_drawn_from_today_s_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    draw = importlib.import_module("draw_architecture")
    assert draw.PICTURE.read_text(encoding="utf-8") == draw.svg(), "draw it again: python docs/draw_architecture.py"


def test_no_local_has_a_name_that_says_nothing() -> None:
    bad = []
    for file in python_files(*SOURCE, "tests"):
        for node in nodes(file):
            stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in RIDDLES
            if stored or (isinstance(node, ast.arg) and node.arg in RIDDLES):
                bad.append(name_of(file))
    assert owed("names", bad) == {}


def test_the_rooms_that_people_meet_hold_no_assert_and_no_local_named_one() -> None:
    """An assert goes with ``python -O``, and tells a user nothing; ``one`` does not say which."""
    rooms = [f"mmprefix/{name}" for name in ("serving", "demo", "inspection", "reports", "generation")]
    bad = []
    for file in python_files(*rooms):
        for node in nodes(file):
            named_one = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "one"
            if named_one or isinstance(node, ast.Assert):
                bad.append(f"{name_of(file)}: {ast.unparse(node)}")
    assert bad == []


def test_a_docstring_begins_with_a_noun_phrase_or_a_verb() -> None:
    bad = []
    for file in python_files(*SOURCE):
        for node in nodes(file):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if text.startswith(INVERTED):
                    bad.append(name_of(file))
    assert owed("docstrings", bad) == {}


def bases_of(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base) for base in node.bases}


def test_signatures_are_short() -> None:
    """At most eight arguments, four of them positional; what a recipe builds takes its options by keyword."""
    bad = []
    for file in python_files("mmprefix", "encoders", "mappers", "recipes"):
        for function, owner in functions(parsed(file)):
            if function.name.startswith("_") and function.name != "__init__":
                continue
            if function.name.startswith("on_") and owner and bases_of(owner) & {"Callback", "Checkpoint"}:
                continue  # Lightning decides on the arguments of its hooks
            arguments = function.args
            first = 1 if owner and not any("staticmethod" in ast.unparse(d) for d in function.decorator_list) else 0
            positional = len(arguments.posonlyargs) + len(arguments.args) - first
            built = owner is not None and bool(bases_of(owner) & RECIPE_CLASSES)
            most = 99 if built and function.name == "__init__" else 8
            if positional > 4 or positional + len(arguments.kwonlyargs) > most:
                bad.append(name_of(file))
    assert owed("signatures", bad) == {}
