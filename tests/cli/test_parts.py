"""``mmprefix parts``: a table that is true to the classes, read without heavy imports."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from mmprefix.cli import parts
from mmprefix.cli.main import main
from mmprefix.parts import RENAMED

ROOT = Path(__file__).resolve().parents[2]
ROWS = parts.parts_table()
IDS = [row["name"] for row in ROWS]
CLASSES = [row for row in ROWS if row["kind"] not in ("trainer", "run")]  # those two: tests/cli/test_part_help.py


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program that writes the table."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("make_parts_table")


def class_of(row: dict[str, Any]) -> type:
    module, _, name = row["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def class_paths(data: Any) -> set[str]:
    """Every class path of this package in a recipe."""
    if isinstance(data, dict):
        own = {str(data["class_path"])} if str(data.get("class_path", "")).startswith("mmprefix.") else set[str]()
        return own.union(*(class_paths(value) for value in data.values()))
    return set[str]().union(*(class_paths(value) for value in data)) if isinstance(data, list) else set()


def test_the_table_is_that_of_today_s_classes(make: ModuleType) -> None:
    assert parts.TABLE.read_text(encoding="utf-8") == make.text(), "write it again: python docs/make_parts_table.py"


@pytest.mark.parametrize("row", CLASSES, ids=[row["name"] for row in CLASSES])
def test_options_are_those_that_the_command_line_takes(row: dict[str, Any]) -> None:
    """Names, defaults, and which are required, as jsonargparse reads them from the class."""
    parser = ArgumentParser()
    parser.add_class_arguments(class_of(row), skip={"sizes"}, sub_configs=True)
    taken = {a.dest: a for a in parser._actions if a.dest not in ("help", "print_config") and "." not in a.dest}
    nested = {a.dest.split(".")[0] for a in parser._actions if "." in a.dest}  # a dataclass: its options below it
    options = {option["name"]: option for option in row["options"]}
    assert set(options) == set(taken) | (nested - {"print_config"})
    for name, option in options.items():
        if name in nested:
            continue
        assert ("default" not in option) == taken[name].required, name
        if "default" in option:
            default = taken[name].default
            assert option["default"] == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_every_part_and_option_has_a_sentence(row: dict[str, Any]) -> None:
    assert row["summary"].endswith(".")
    assert [option["name"] for option in row["options"] if not option["help"].endswith(".")] == []


def test_every_class_of_the_shipped_recipes_is_in_the_table() -> None:
    known = {row["class_path"] for row in ROWS} | {row["file_path"] for row in ROWS}
    named = {
        path for file in (ROOT / "recipes").glob("*.yaml") for path in class_paths(yaml.safe_load(file.read_text()))
    }
    assert named
    assert {RENAMED.get(path, path) for path in named} - known == set()


@pytest.mark.parametrize("words", [[], ["MLP"], ["decoders"], ["--help"], ["nonsense"]])
def test_it_answers_without_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom mmprefix.cli.main import main\n"
        f"try:\n    main(['parts', *{words!r}])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'lightning', 'transformers', 'jsonargparse'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_the_list_names_every_part_with_its_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["parts"]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    text = " ".join(output.split())
    for row in ROWS:
        assert f"{row['name']} {row['summary']}".replace("``", "`") in text


@pytest.mark.parametrize("name", ["MLP", "mlp", "mmprefix.mappers.mlp.MLP"])
def test_a_part_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parts", name]) == 0
    output = capsys.readouterr().out
    assert "class_path: mmprefix.mappers.mlp.MLP" in output
    assert "    hidden: int or null, default null\n" in output
    assert "sizes" not in output


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mmprefix.decoder.CausalDecoder", "mmprefix.decoders.CausalDecoder"),  # of an earlier version
        ("mmprefix.decoders.causal.CausalDecoder", "mmprefix.decoders.CausalDecoder"),  # of its file
        ("transcriber", "mmprefix.transcriber.Transcriber"),
    ],
)
def test_other_paths_lead_to_the_part(name: str, path: str) -> None:
    assert [row["class_path"] for row in parts.find_parts(name)] == [path]


def test_a_kind_shows_all_of_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parts", "mapper", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [row for row in ROWS if row["kind"] == "mapper"]
    assert parts.find_parts("mappers") == parts.find_parts("mapper")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Resamplr", "no part 'Resamplr'; did you mean 'Resampler'?"),
        ("mmprefix.mappers.mpl.MPL", "no part 'mmprefix.mappers.mpl.MPL'; did you mean 'MLP'?"),
        ("encodres", "no part 'encodres'; did you mean 'encoder"),
        ("q", "no part 'q'; parts: Aligned, AST, Clap,"),
    ],
)
def test_a_wrong_name_is_told_the_nearest_or_the_list(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parts", name]) == 2
    assert capsys.readouterr().err.startswith(f"mmprefix: {line}")
