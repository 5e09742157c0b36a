"""docs/personal.md: the lines about cartridges run as they stand, in Python and in the shell."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmprefix.cli.main import main
from mmprefix.decoders import CausalDecoder
from tiny import decoders as tiny_decoders
from tiny.models import frozen_parts
from tiny.users import picture, save_personal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "personal.md"


def block(mark: str) -> str:
    (lines,) = re.findall(rf"<!-- run: {mark} -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return lines


def test_the_lines_about_cartridges_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "decoder": CausalDecoder(tiny_decoders.save_decoder(tmp_path / "llama", "llama", sharp=3.0)),
        "history": "some rain falls on the old roof, and a bell rings twice.",
        "texts": [("\n", "a dog barks"), ("\n", "the cat runs")],
        "glossary": "a green hill is a hill; the old roof is a roof",
    }
    exec(block("cartridges"), names)
    assert names["ann"].positions == 8
    assert names["both"].positions == 15
    assert [len(row) for row in names["scores"]] == [1, 1]
    assert names["scores"][0] != pytest.approx(names["scores"][1], abs=1e-3)
    assert (tmp_path / "ann.safetensors").is_file()


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path / "models"))
    tiny_decoders.save_decoder(tmp_path / "models" / "smollm2-135m-instruct", "llama")
    save_personal(tmp_path / "captioner", frozen_parts(tmp_path / "parts"), "deep")
    picture().save("photo.jpg")
    Path("my_captions.txt").write_text("some rain falls on the old roof\nthe cat runs, and a bell rings twice\n")
    Path("glossary.txt").write_text("a green hill is a hill; the old roof is a roof\n")
    Path("style.txt").write_text("the cat runs, and a bell rings twice; some rain falls on a hill\n")
    commands, _, rest = block("distil").partition("cat > ")
    recipe, _, last = rest.partition("\nEND\n")
    subprocess.run(["bash", "-euc", f"cat > {recipe}\nEND\n"], check=True)
    for line in [*commands.splitlines(), *last.splitlines()]:
        assert main(shlex.split(line)[1:]) == 0, line
    out = capsys.readouterr().out
    assert "1 users distilled, 16 positions, 4,096 bytes a user; " in out
    assert "glossary.safetensors: 16 positions, " in out
    assert "both.safetensors: 31 positions, " in out
    assert "text: " in out
