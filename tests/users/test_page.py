"""docs/users.md: its commands and its Python run as they stand there, in this order."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mmprefix.cli.main import main
from mmprefix.users import UserStore
from tiny.user_traces import traces

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "users.md").read_text(encoding="utf-8")


def block(mark: str) -> str:
    match = re.search(rf"<!-- run: {mark} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert match, mark
    return match[1]


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shell, commands = block("users").split("mmprefix users add", 1)
    subprocess.run(["bash", "-euc", shell], check=True)
    for line in f"mmprefix users add{commands}".splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
    out = capsys.readouterr().out
    assert "users 2 removed, every byte of them; users.db holds 1" in out
    assert "  4. rain on the pier" in out
    exec(compile(block("python"), "docs/users.md", "exec"), names := {"__name__": "page"})
    assert names["prefix"]["embeds"].shape == (10, 768)
    with UserStore("users.db") as store:
        assert len(store) == 0
    assert traces(Path("users.db"), ["two boats at sea", "my dog, who else", "rain on the pier"]) == []
