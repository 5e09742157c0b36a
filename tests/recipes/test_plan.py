"""Plans of programs: settings from JSON, and refusals that name the setting and what would work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from mmprefix.errors import InputError
from mmprefix.recipes.pretrain.plan import read_plan, run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Plan:
    steps: int = 3
    lr: float = 0.1
    test: bool = False
    kind: Literal["state", "output"] = "state"


def test_changes_stand_over_what_the_recipe_says() -> None:
    assert read_plan(Plan, "{}") == Plan()
    assert read_plan(Plan, '{"lr": 1, "kind": "output"}', {"lr": 0.5, "steps": 7}) == Plan(7, 1, False, "output")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("{steps: 3}", r"--plan {steps: 3}: is no JSON .* give an object"),
        ("[3]", r"--plan \[3\]: is no JSON object"),
        ('{"step": 3}', r"plan\.step: no such setting; did you mean 'steps'\?; there are steps, lr, test, kind"),
        ('{"steps": 3.5}', r"plan\.steps 3\.5: give int"),
        ('{"steps": true}', r"plan\.steps True: give int"),
        ('{"test": 1}', r"plan\.test 1: give bool"),
        ('{"lr": "1"}', r"plan\.lr '1': give float"),
        ('{"kind": "other"}', r"plan\.kind 'other': give state or output"),
    ],
)
def test_what_is_no_plan_is_refused(changes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_plan(Plan, changes)


@pytest.mark.parametrize("name", ["align", "retrieve", "draft", "state_offset"])
def test_a_program_ends_with_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main: Callable[[list[str]], Any] = importlib.import_module(f"mmprefix.recipes.{name}.train").main
    words = {
        "align": ["--config", str(ROOT / "recipes/align/flickr8k_mini.yaml"), "--manifest", "none.jsonl"],
        "retrieve": ["--manifest", "none.jsonl"],
    }
    with pytest.raises(SystemExit) as ended:
        run(lambda: main([*words.get(name, []), "--out", str(tmp_path / "out"), "--plan", '{"sede": 1}']))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("plan.sede: no such setting; did you mean 'seed'?")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("align", ["--config", "none.yaml", "--manifest", "none.jsonl"]),
        ("retrieve", ["--manifest", "none.jsonl"]),
        ("draft", ["--prompts", "none.txt"]),
        ("state_offset", ["--model", "./none"]),
    ],
)
def test_a_file_that_is_missing_ends_a_program_with_one_line(
    name: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Callable[[list[str]], Any] = importlib.import_module(f"mmprefix.recipes.{name}.train").main
    with pytest.raises(SystemExit) as ended:
        run(lambda: main([*words, "--out", str(tmp_path / "out")]))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words[1] in line


def test_every_program_reads_its_plan_so() -> None:
    readers = [file for file in ROOT.glob("recipes/*/*.py") if '"--plan"' in file.read_text(encoding="utf-8")]
    assert len(readers) == 4
    assert not [file for file in readers if "read_plan(" not in file.read_text(encoding="utf-8")]
