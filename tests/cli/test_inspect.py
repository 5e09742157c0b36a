"""``mmprefix inspect``: the table, the JSON object, the maps it writes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import mmprefix
from mmprefix.inspection import nearest_words
from mmprefix.world.generate import make_samples
from tiny.shell import Shell

MODEL = str(Path(mmprefix.__file__).parent / "world" / "trained")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_samples(tmp_path_factory.mktemp("samples"), count=1)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_a_picture_is_looked_into(shell: Shell, samples: Path, tmp_path: Path) -> None:
    file, out = samples / "image-0000.png", tmp_path / "maps"
    code, text, err = shell("inspect", MODEL, file, "--out", out, "--grid", "3", "--words", "2", "--json")
    assert code == 0, err
    report, model = json.loads(text), mmprefix.load()
    assert report["caption"] == model(file)
    nearest = [[word["text"] for word in row["nearest"]] for row in report["positions"]]
    assert nearest == [[word.text for word in row] for row in nearest_words(model, file, count=2)]
    assert report["positions"][0]["norm"] > report["word_norms"]["high"]
    numbers = json.loads((out / "maps.json").read_text())
    assert numbers["words"]["labels"] == report["caption"].split()
    assert [len(row) for row in numbers["positions"]["values"][0]] == [3, 3, 3]
    drawn = sorted(path.name for path in out.glob("*.png"))
    assert len(drawn) == 1 + 8 + len(report["caption"].split())
    assert sorted(report["maps"]) == sorted(str(path) for path in out.iterdir())
    with Image.open(out / "all.png") as picture:
        assert picture.size == (384, 384)


def test_a_sound_is_a_table(shell: Shell, samples: Path) -> None:
    code, text, err = shell("inspect", MODEL, samples / "audio-0000.wav")
    assert code == 0, err
    lines = text.splitlines()
    assert lines[0].startswith("caption: ")
    assert lines[1].startswith("norms of words: mean 2.42")
    assert [line.split()[0] for line in lines[2:]] == [str(number) for number in range(8)]
    assert all(re.fullmatch(r" +\d  norm [\d.]+ +(\S+ -?\d\.\d\d(, |$)){5}", line) for line in lines[2:])


def test_what_it_refuses(shell: Shell, samples: Path) -> None:
    picture = samples / "image-0000.png"
    assert "give it, or leave these out" in shell.refuses("inspect", MODEL, picture, "--grid", "3")
    assert "no such file" in shell.refuses("inspect", MODEL, samples / "none.png")
    assert shell.refuses("inspect", MODEL, picture, "--words", "0").startswith("count 0")
    message = shell.refuses("inspect", MODEL, picture, "--out", samples / "maps", "--map", "attention")
    assert "MLP reads no frames by attention" in message
