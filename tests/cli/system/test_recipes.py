"""``mmprefix recipes``: every recipe of the folder, its title, what it needs, and a copy that trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprefix.cli.system.shipped import FOLDER, recipe_names, shipped_recipe
from tiny.shell import Shell


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_a_line_a_recipe(shell: Shell) -> None:
    code, out, err = shell("recipes")
    assert (code, err) == (0, "")
    names = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    lines = out.split("\n")
    assert [line.split()[0] for line in lines[1 : len(names) + 1]] == names
    for name, line in zip(names, lines[1:], strict=False):
        first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\n")[0]
        assert first.removeprefix("# ") in line


def test_every_recipe_says_what_it_is_and_needs() -> None:
    for name in recipe_names():
        recipe = shipped_recipe(name)
        assert len(recipe.title) > 30
        assert {"Data", "Expected", "Cost"} <= set(recipe.fields), name
        assert recipe.needs, name
        assert not any("\n" in text for text in recipe.fields.values())


def test_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path / "models"))
    assert {need.kind for need in shipped_recipe("quickstart").needs} == {"embedded"}
    assert shipped_recipe("quickstart").state == "ready"
    assert shipped_recipe("esc10-whisper").state == (
        "missing here: models:whisper-base, models:smollm2-135m-instruct, esc10"
    )
    for folder in ("models/whisper-base", "models/smollm2-135m-instruct", "esc10"):
        (tmp_path / folder).mkdir(parents=True)
    assert shipped_recipe("esc10_whisper").state == "ready"
    needs = {need.name: need for need in shipped_recipe("pictures").needs}
    assert needs["open_clip ViT-B-32/openai"].present is None
    assert needs["openai-community/gpt2"].present is None
    (tmp_path / "hub/hub/models--openai-community--gpt2/snapshots").mkdir(parents=True)
    assert {need.name: need.present for need in shipped_recipe("pictures").needs}["openai-community/gpt2"] is True
    assert shipped_recipe("coco_mini").needs[0].kind == "file"


def test_one_recipe(shell: Shell) -> None:
    code, out, _ = shell("recipes", "quickstart")
    assert code == 0
    assert out.startswith(f"{FOLDER / 'quickstart.yaml'}\n\nThe embedded world")
    assert "embedded  mmprefix:world/frozen/decoder: present" in out
    rows = json.loads(shell("recipes", "--json")[1])
    assert [row["name"] for row in rows] == recipe_names()
    assert json.loads(shell("recipes", "quickstart", "--json")[1]) == next(r for r in rows if r["name"] == "quickstart")


def test_a_copy(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "my.yaml"
    assert shell("recipes", "quickstart", "--out", out) == (0, f"{out}\n", "")
    assert out.read_bytes() == (FOLDER / "quickstart.yaml").read_bytes()
    assert (
        shell.refuses("recipes", "sounds", "--out", out)
        == f"--out {out}: the file is there; --overwrite writes over it"
    )
    assert shell("recipes", "sounds", "--out", out, "--overwrite")[0] == 0
    assert out.read_bytes() == (FOLDER / "sounds.yaml").read_bytes()
    assert shell("recipes", "sounds", "--out", tmp_path)[1] == f"{tmp_path / 'sounds.yaml'}\n"
    assert "did you mean 'quickstart'?" in shell.refuses("recipes", "quickstrat")
    assert "name it" in shell.refuses("recipes", "--out", out)
